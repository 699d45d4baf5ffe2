"""Converts the demo language model once, from quantized GGUF to a folder that transformers loads in two seconds.

Run in a process of its own (``python -m kit._gguf MODEL.gguf FOLDER``), so that the libraries and the half gigabyte
of weights are gone afterwards. Loading the GGUF through transformers itself takes half a minute each
time and depends on the release: some keep the weights packed and can't save them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

#: Names of a Llama block's tensors: GGUF's -> transformers'.
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def convert(source: Path, target: Path) -> None:
    """Write `source` (Llama architecture, GGUF) to the folder `target`: bf16 safetensors, config and tokenizer.

    Raises:
        ValueError: the file isn't of the Llama architecture, or holds a tensor that this doesn't know.
    """
    import gguf
    import torch
    from safetensors.torch import save_file

    reader = gguf.GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
    if fields["general.architecture"] != "llama":
        raise ValueError(f"{source.name} has the architecture {fields['general.architecture']!r}; 'llama' is needed.")
    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}

    tensors = {}
    for tensor in reader.tensors:
        # The copy is for tensors that aren't quantized: those are read-only views of the file.
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        kind = tensor.name.split(".")[-2]
        if kind in heads:
            values = _rows_as_halves(values, heads[kind])
        tensors[_name(tensor.name)] = values.to(torch.bfloat16).contiguous()

    target.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    config = _config(fields, tied="lm_head.weight" not in tensors, vocabulary=len(tensors["model.embed_tokens.weight"]))
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (target / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    _save_tokenizer(source, target, max_length=config["max_position_embeddings"])


def _name(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "blk" and parts[2] in BLOCK_NAMES:
        return f"model.layers.{parts[1]}.{BLOCK_NAMES[parts[2]]}.{parts[3]}"
    if parts[0] in OUTER_NAMES:
        return f"{OUTER_NAMES[parts[0]]}.{parts[1]}"
    raise ValueError(f"{name} isn't a tensor of a Llama model.")


def _rows_as_halves(weights: Any, heads: int) -> Any:
    """Undo GGUF's order of a head's rows: it interleaves the two halves that transformers' rotary embedding rotates."""
    rows, columns = weights.shape
    return weights.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _config(fields: dict[str, Any], tied: bool, vocabulary: int) -> dict[str, Any]:
    heads = fields["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.embedding_length"] // heads,
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        "tie_word_embeddings": tied,
        "vocab_size": vocabulary,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


def _save_tokenizer(source: Path, target: Path, max_length: int) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, model_max_length=max_length)
    # GGUF only names its pre-tokenizer ("smollm"), and transformers takes GPT-2's; SmolLM's splits digits first.
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
