"""vLLM as the engine. Imported only for `--engine vllm`; the modules that need vLLM say so."""
