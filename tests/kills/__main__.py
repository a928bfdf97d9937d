"""`python -m kills [N] [SEED] [COMMAND]`: N kills, and what came of them; exit code 1 where the law was broken."""

import logging
import sys
import tempfile
import time
from pathlib import Path

from kills.campaign import Campaign, Findings


def main() -> int:
    """Kill, and print the table."""
    count, seed = (int(word) for word in [*sys.argv[1:3], *["1000", "0"][len(sys.argv[1:3]) :]])
    started, findings = time.time(), Findings()
    with tempfile.TemporaryDirectory(prefix="minitron-kills-") as folder:
        campaign = Campaign(Path(folder), sys.argv[3:] or None)
        every = list(campaign.kills())
        print(f"{len(every):,} kills there are; {time.time() - started:.0f} s to prepare", flush=True)
        kills = campaign.sample(count, seed)
        for start in range(0, len(kills), 20):
            campaign.try_all(kills[start : start + 20], findings)
            print(
                f"{min(start + 20, len(kills)):,} of {len(kills):,}: {len(findings.violations)} violations", flush=True
            )
    print(findings.table())
    print(f"{time.time() - started:.0f} s")
    return int(bool(findings.violations))


if __name__ == "__main__":
    logging.disable()
    sys.exit(main())
