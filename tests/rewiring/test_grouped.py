"""The compiled product of rows in groups: the same numbers as torch's, and another way where it can't be compiled."""

from __future__ import annotations

import logging
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from c3po_bench.rewiring.engines import compiled, packed
from c3po_bench.rewiring.engines import grouped as ours
from c3po_bench.rewiring.meter import counter


@pytest.fixture
def library():
    if not ours.available():
        pytest.skip("no C compiler here: oneDNN's product is used")


@pytest.fixture
def anew():
    """What was compiled, or found missing, is forgotten before and after."""
    ours._library.cache_clear()
    yield
    ours._library.cache_clear()


def one_by_one(rows, matrices, counts):
    shares = zip(rows.split(counts), matrices, strict=True)
    return torch.cat([share.double() @ matrix.double().T for share, matrix in shares]).float()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("outputs", [1, 16, 31, 32, 100])
@pytest.mark.parametrize("inputs", [1, 7, 640, 641, 1300])
def test_products(library, threads, outputs, inputs, monkeypatch):
    monkeypatch.setattr(ours, "SMALL", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    counts = [0, *range(1, 14), 0, 25, 40, 0]
    rows, matrices = torch.randn(sum(counts), inputs), torch.randn(len(counts), outputs, inputs)
    found = ours.grouped_product(rows, ours.in_panels(matrices), counts, outputs)
    torch.testing.assert_close(found, one_by_one(rows, matrices, counts), atol=1e-4, rtol=1e-5)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="its instruction sets")
@pytest.mark.parametrize("march", ["x86-64", "x86-64-v3"])
def test_processors_without_avx512(library, anew, march, monkeypatch, tmp_path):
    """Their tiles are smaller, and so are the panels."""
    if march == "x86-64-v3" and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX2")
    monkeypatch.setenv("C3PO_CACHE", str(tmp_path))
    monkeypatch.setattr(
        compiled, "FLAGS", [f"-march={march}" if f == "-march=native" else f for f in compiled.FLAGS]
    )
    counts = [0, *range(1, 9), 25]
    rows, matrices = torch.randn(sum(counts), 700), torch.randn(len(counts), 37, 700)
    panels = ours.in_panels(matrices)
    assert panels.shape == (len(counts), 3, 700, 16)
    expected = one_by_one(rows, matrices, counts)
    torch.testing.assert_close(ours.grouped_product(rows, panels, counts, 37), expected, atol=1e-4, rtol=1e-5)


def test_many_threads_leave_nothing_out(library, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    rows, matrices = torch.randn(64, 256), torch.randn(4, 300, 256)
    panels, expected = ours.in_panels(matrices), one_by_one(rows, matrices, [16] * 4)
    for _ in range(50):
        torch.testing.assert_close(
            ours.grouped_product(rows, panels, [16] * 4, 300), expected, atol=1e-4, rtol=1e-5
        )


def test_a_sum_over_a_vocabulary_keeps_its_digits(library):
    rows, matrix = torch.rand(2, 50_000), torch.rand(1, 3, 50_000)
    found = ours.grouped_product(rows, ours.in_panels(matrix), [2], 3)
    torch.testing.assert_close(
        found, one_by_one(rows, matrix, [2]), atol=0, rtol=3e-6
    )  # one long sum is off by 1e-4


def test_no_rows(library):
    assert ours.grouped_product(torch.empty(0, 5), ours.in_panels(torch.randn(2, 3, 5)), [0, 0], 3).shape == (
        0,
        3,
    )


def test_rows_need_not_lie_in_order(library):
    matrix = torch.randn(1, 4, 6)
    for rows in (torch.randn(1, 6).expand(12, 6), torch.randn(6, 12).T, torch.randn(12, 12)[:, ::2]):
        found = ours.grouped_product(rows, ours.in_panels(matrix), [12], 4)
        torch.testing.assert_close(found, rows @ matrix[0].T)


@pytest.mark.parametrize("counts", [[2, 2], [3], [1, 1, 1]])
def test_counts_that_do_not_fit_are_refused(library, counts):
    with pytest.raises(ValueError, match="groups"):
        ours.grouped_product(torch.randn(3, 5), ours.in_panels(torch.randn(2, 4, 5)), counts, 4)


@pytest.mark.parametrize("rows", [torch.randn(3, 6), torch.randn(3, 5).double()])
def test_rows_of_another_width_or_dtype_are_refused(library, rows):
    with pytest.raises(ValueError, match="float32"):
        ours.grouped_product(rows, ours.in_panels(torch.randn(1, 4, 5)), [3], 4)


def test_flops_are_counted(library):
    with counter() as counted:
        ours.grouped_product(torch.randn(3, 5), ours.in_panels(torch.randn(2, 4, 5)), [1, 2], 4)
    assert counted.total == 2 * 3 * 5 * 4


def test_it_is_compiled_once_for_a_processor(library, anew, monkeypatch, tmp_path):
    monkeypatch.setenv("C3PO_CACHE", str(tmp_path))
    ran = []
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **how: ran.append(command) or real(command, **how))
    assert ours.available() and sum("-o" in command for command in ran) == 1
    ours._library.cache_clear()
    assert ours._library() and sum("-o" in command for command in ran) == 1
    monkeypatch.setattr(compiled, "_processor", lambda: "another")
    ours._library.cache_clear()
    assert ours._library() and sum("-o" in command for command in ran) == 2


def weighted(parameter, rows, counts):
    copies = packed.packed(parameter)
    assert copies is not None
    return copies.times(rows, counts)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("compiler", [None, "false", "a folder that is no cache"])
def test_without_it_onednn_multiplies(anew, monkeypatch, tmp_path, caplog, compiler):
    monkeypatch.setenv(
        "C3PO_CACHE", str(tmp_path / "file" if compiler == "a folder that is no cache" else tmp_path)
    )
    (tmp_path / "file").write_text("")
    if compiler is None:
        monkeypatch.setattr(compiled, "compiler", lambda: None)
    elif compiler == "false":
        monkeypatch.setattr(compiled, "compiler", lambda: shutil.which("false"))
    parameter = torch.nn.Parameter(torch.randn(3, 4, 6), requires_grad=False)
    rows = torch.randn(9, 6)
    with caplog.at_level(logging.INFO):
        found = weighted(parameter, rows, [4, 0, 5])
    torch.testing.assert_close(found, one_by_one(rows, parameter, [4, 0, 5]))
    assert not ours.available()
    assert caplog.text.count("can't be compiled") == 1
