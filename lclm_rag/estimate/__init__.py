"""What a corpus and its questions will take, worked out beforehand. Loads no model and no torch.

`store`: tokens, latents, bytes, FLOPs. `index`: servers of the passage index. `serving`: a question on vLLM.
`shapes`: the sizes of models. `devices`: GPUs and their prices.
"""
