"""Where models come from, and what is said when they do not."""

from __future__ import annotations

import pytest

from trimtab.errors import ModelError
from trimtab.models.source import folder_hash, model_folder, source_problem, split_source


def folder(path, *files):
    path.mkdir(parents=True)
    for name in files:
        (path / name).write_text("{}")
    return path


def test_a_source_says_of_which_kind_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "owner" / "here")
    assert split_source("builtin:smollm2-135m") == ("builtin", "smollm2-135m")
    assert split_source("artifact:train-0123") == ("artifact", "train-0123")
    assert split_source("./x") == ("folder", "./x")
    assert split_source("~/x") == ("folder", "~/x")
    assert split_source("owner/here") == ("folder", "owner/here")
    assert split_source("owner/elsewhere") == ("hub", "owner/elsewhere")


def test_a_whole_folder_is_taken_as_it_is(tmp_path):
    there = folder(tmp_path / "m", "config.json", "model.safetensors")
    assert model_folder(str(there), tmp_path) == there
    assert source_problem(str(there)) is None


def test_a_folder_without_configuration_is_refused(tmp_path):
    there = folder(tmp_path / "m", "model.safetensors")
    with pytest.raises(ModelError, match=r"no config.json in .*/m; give a folder written by save_pretrained"):
        model_folder(str(there), tmp_path)
    assert "no config.json" in source_problem(str(there))


@pytest.mark.parametrize("files", [(), ("pytorch_model.bin",)])
def test_a_folder_without_safetensors_is_refused(tmp_path, files):
    there = folder(tmp_path / "m", "config.json", *files)
    with pytest.raises(ModelError, match=r"no .safetensors file in .*/m; save it with safe_serialization"):
        model_folder(str(there), tmp_path)


def test_an_artifact_is_found_beside_the_cache(tmp_path):
    there = folder(tmp_path / "artifacts" / "train-0123" / "model", "config.json", "model.safetensors")
    assert model_folder("artifact:train-0123", tmp_path / "cache") == there
    with pytest.raises(ModelError, match="artifact:train-9999"):
        model_folder("artifact:train-9999", tmp_path / "cache")


@pytest.mark.parametrize("name", ["../outside", "..", "x/../../outside", "/outside", "linked"])
def test_an_artifact_lies_in_the_storage_whatever_its_name_or_a_link_says(tmp_path, name):
    folder(tmp_path / "outside" / "model", "config.json", "model.safetensors")
    folder(tmp_path / "storage" / "artifacts")
    (tmp_path / "storage" / "artifacts" / "linked").symlink_to(tmp_path / "outside")
    with pytest.raises(ModelError, match="leads out of .*artifacts; give a folder by its path"):
        model_folder(f"artifact:{name}", tmp_path / "storage" / "cache")


def test_a_hub_id_that_cannot_be_had_offline_names_the_way_out(tmp_path):
    with pytest.raises(ModelError, match=r"'owner/nowhere'.*go online, or give a folder or builtin:smollm2-135m"):
        model_folder("owner/nowhere", tmp_path)
    assert "HF_HUB_OFFLINE" in source_problem("owner/nowhere")
    assert "owner/name" in source_problem("a/b/c")
    assert "no built-in model 'x'" in source_problem("builtin:x")


def test_a_folder_s_hash_follows_its_content_not_its_place(tmp_path):
    one, two = (folder(tmp_path / name, "config.json") for name in "ab")
    big = bytearray(40 << 20)
    for there in (one, two):
        (there / "model.safetensors").write_bytes(big)
    assert folder_hash(one) == folder_hash(two)
    for position in (0, len(big) // 2, len(big) - 1):
        changed = bytearray(big)
        changed[position] = 1
        (two / "model.safetensors").write_bytes(changed)
        assert folder_hash(one) != folder_hash(two), position
    (two / "model.safetensors").write_bytes(big)
    (two / "config.json").rename(two / "other.json")
    assert folder_hash(one) != folder_hash(two)
