"""OpenAI's routes over the same service: requests, answers and errors as its clients expect."""
