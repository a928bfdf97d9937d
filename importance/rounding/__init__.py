"""Rounding by what a model reads: second moments of the inputs of every linear, layer by layer.

feedback     columns that make up for what rounding took from those before them
inputs       what linears read, looked at while the layer runs
squares      how large inputs are alone: an importance matrix for llama.cpp
calibrated   a checkpoint layer by layer over a text: what goes into minitron.quantise.writing
"""
