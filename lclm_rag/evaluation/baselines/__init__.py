"""Other methods of shortening a prompt, which latents are compared with."""
