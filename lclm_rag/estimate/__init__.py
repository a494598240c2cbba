"""What a corpus and its questions will take, worked out beforehand. Loads no model and no torch.

`store`: tokens, latents, bytes, GPU hours. `serving`: a question on vLLM. `machines`: the machines of each
part. `limits`: what gives out first. `cluster` brings them together. `shapes`: the sizes of models.
"""
