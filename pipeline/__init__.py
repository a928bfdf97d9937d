"""The chain from a checkpoint to a recovered smaller one, and the Python interface: what the commands do.

    from pipeline import Planning, Pruning, plan, prune

    found = plan(model, Planning(gpu="A10G", context=131_072))
    cut = prune(Pruning(model, output, planning=found.planning, data=text))

Requests are frozen dataclasses in plain types that check themselves; results are frozen dataclasses.  Nothing prints:
progress goes to a minitron.progress.Progress and remarks to a `note`, both silent by default.  Errors that a user can
fix are minitron.errors.MinitronError.  Only functions that read weights import torch.

On a CPU, set ONEDNN_PRIMITIVE_CACHE_CAPACITY=128 and LRU_CACHE_CAPACITY=128 in the environment before torch is
imported, as the command line does: else oneDNN keeps up to 2,048 compiled matmuls, of 0.7 MiB each, and the memory of
a mixture of experts climbs with every new count of tokens that an expert gets.
"""

from distill.recipe import Recipe
from distill.run.distillation import Distillation
from distill.run.recipe_file import Stage, read_recipe
from distill.teacher.kept import Kept
from importance.score.options import ScoringOptions
from judge.contests import Contest, first_turn, material, second_turn
from judge.endpoint import Asking
from judge.instructions import Instructions, read_instructions
from judge.learning import Learning
from judge.parsing import BrokenFormat, parse_branch, parse_ranking
from judge.reward import Rewards, reward_of
from judge.speaking import Speaking
from minitron.measure.options import EvaluationOptions
from minitron.measure.records import Source
from pipeline.benchmarking import Benchmarked, Benchmarking, benchmark
from pipeline.chain import Compressed, compress
from pipeline.comparison import Comparison, compare
from pipeline.compression import Compression
from pipeline.cutting import Cutting
from pipeline.distillation import Distilled, distill
from pipeline.evaluation import evaluate
from pipeline.exporting import Export, export
from pipeline.family import Family, compress_family
from pipeline.inspection import Inspection, inspect
from pipeline.judge_training import JudgeTraining, TrainedJudge, train_judge
from pipeline.judging import Judgement, Judging, Ruling, judge
from pipeline.planned import Planned, plan
from pipeline.planning import Planning
from pipeline.pruning import Cut, Pruning, prune
from pipeline.quantising import Quantising, quantise
from pipeline.scoring import score
from pipeline.searching import Searching
from pipeline.serving import Serving
from pipeline.solution import Solution, solve
from pipeline.standing import Standing, stand

__all__ = [
    "Asking",
    "Benchmarked",
    "Benchmarking",
    "BrokenFormat",
    "Comparison",
    "Compressed",
    "Compression",
    "Contest",
    "Cut",
    "Cutting",
    "Distillation",
    "Distilled",
    "EvaluationOptions",
    "Export",
    "Family",
    "Inspection",
    "Instructions",
    "JudgeTraining",
    "Judgement",
    "Judging",
    "Kept",
    "Learning",
    "Planned",
    "Planning",
    "Pruning",
    "Quantising",
    "Recipe",
    "Rewards",
    "Ruling",
    "ScoringOptions",
    "Searching",
    "Serving",
    "Solution",
    "Source",
    "Speaking",
    "Stage",
    "Standing",
    "TrainedJudge",
    "benchmark",
    "compare",
    "compress",
    "compress_family",
    "distill",
    "evaluate",
    "export",
    "first_turn",
    "inspect",
    "judge",
    "material",
    "parse_branch",
    "parse_ranking",
    "plan",
    "prune",
    "quantise",
    "read_instructions",
    "read_recipe",
    "reward_of",
    "score",
    "second_turn",
    "solve",
    "stand",
    "train_judge",
]
