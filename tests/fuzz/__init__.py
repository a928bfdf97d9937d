"""The campaign of damaged inputs: one command on one damaged input a case, and the law that holds of each.

corpus.py      the sound inputs: tiny models, texts, scores, plans, recipes, a run that stopped half way
values.py      what stands in the place of a sound value
documents.py   damage to JSON and TOML documents
weights.py     damage to safetensors files
texts.py       damage to texts, tables and any other bytes
cases.py       which input is damaged and which command reads it, of every number and seed
runner.py      one case in a process of its own, with limits, and what it broke of the law

`make fuzz N=10000 SEED=0` runs many, test_fuzz.py a sample of the same.
"""

import os

from cli.app import ENVIRONMENT

# Before torch and transformers are imported: that of the command line, and no network.
for name, value in {**ENVIRONMENT, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}.items():
    os.environ.setdefault(name, value)
