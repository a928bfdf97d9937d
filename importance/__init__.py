"""Which parts of a model matter: streaming sums over calibration text, one score per index of an axis.

sites        where in a model the activations of an axis pass, read off the family's rules
estimators   from the activations of a batch to a channel's score
experts      routed experts, each by its own tokens
observe      hooks that feed the sums while a model runs
depth        what leaving out a layer does to the logits
calibrate    all of it: a checkpoint and a text in, Scores out

From here on, which architecture to cut a model to:

blocks       which sequences of a text calibrate and which measure
trial        how far a candidate, cut in memory, is from its parent
damage       what any candidate would lose, from a few dozen that were measured
sieves       the search by what is measured; verdicts says what became of whom
"""
