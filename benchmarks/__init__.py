"""Speed of latentwire beside its peers: same model, prompts and number of tokens, in one run."""
