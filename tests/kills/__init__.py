"""Kills: a SIGKILL before every change of the file system, and the same command again, which must end as if nothing
had happened.

    make kills N=1000           so many kills, chosen from all by a seed
    tests/kills/test_kills.py   a sample in continuous integration
"""
