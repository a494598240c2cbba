"""What a corpus and its questions will take, worked out in advance. Loads no model and no torch.

`store`: tokens, latents, bytes and FLOPs. `index`: servers of the passage index. `serving`: a question on
vLLM. `shapes`: the sizes of models. `devices`: GPUs and their prices.
"""
