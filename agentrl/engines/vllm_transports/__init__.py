"""Ways for weights to reach a vLLM server, one a module; `base` says what each must do."""
