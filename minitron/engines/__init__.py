"""The engines that serve models: how each allocates what layers keep, and what else of the memory it takes.

    keeping     what layers keep between tokens, and what is asked of an engine
    plain       no engine: the sum, nothing rounded
    vllm        one pool of blocks
    llama_cpp   a buffer of keys and values, one of states, one for a step
    table       ENGINES: a row an engine

An engine's law counts from what layers keep (minitron.memory.caches) and knows no model and no number format.
"""
