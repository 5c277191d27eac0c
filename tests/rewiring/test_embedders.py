"""Embedding test questions: once for all arms, each charged alike."""

import numpy as np
import torch

from c3po_bench.models.flops import shape_of
from c3po_bench.models.tiny import tiny_tokenizer
from c3po_bench.rewiring.config import EmbedderConfig
from c3po_bench.rewiring.embedders import MeanPooled, QuestionEmbedder, embedder_identity
from c3po_bench.runtime.meter import Meter


def test_a_folder_is_known_by_what_is_in_it(tmp_path):
    cfg = EmbedderConfig("sentence_transformers", str(tmp_path))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    first = embedder_identity(cfg)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"mode": "cls"}')
    assert embedder_identity(cfg) != first
    assert embedder_identity(EmbedderConfig("minilm")) == ["minilm", None]


class Recording:
    identity = "recording"
    transformer = None

    def __init__(self):
        self.seen = []

    def __call__(self, texts):
        self.seen.append(list(texts))
        rows = torch.tensor([[float(len(text)), 1.0] for text in texts])
        return torch.nn.functional.normalize(rows @ torch.eye(2), dim=-1).numpy()


def test_a_batch_is_embedded_once_and_every_arm_pays():
    recording = Recording()
    embed, first, second = QuestionEmbedder(recording), Meter(), Meter()
    vectors = embed(["why?", "how so?"], first)
    np.testing.assert_array_equal(embed(("why?", "how so?"), second), vectors)
    assert recording.seen == [["why?", "how so?"]]
    assert second.seconds == first.seconds and first.cached_seconds == 0
    assert second.cached_seconds == second.seconds["embed"]
    assert first.cost().phases["embed"].flops is None, "nothing is known of this embedder's cost"


def test_another_batch_is_embedded_anew():
    """What is embedded together moves the last digits, so a batch is not put together from others."""
    recording = Recording()
    embed, meter = QuestionEmbedder(recording), Meter()
    embed(["why?", "how so?"], meter)
    embed(["why?"], meter)
    embed.forget()
    embed(["why?"], meter)
    assert recording.seen == [["why?", "how so?"], ["why?"], ["why?"]] and meter.cached_seconds == 0


def test_the_cost_of_a_transformer_is_that_of_its_passes(models):
    model = models("olmoe")
    embedder = MeanPooled("tiny", model.get_decoder(), tiny_tokenizer(), 2, 512)
    meter = Meter()
    QuestionEmbedder(embedder)(["why?", "how?", "how so?"], meter)
    shape = shape_of(model)
    expected = shape.forward(shape.span, 2, 4, 4) + shape.forward(shape.span, 1, 7, 7)
    assert meter.cost().phases["embed"].flops == expected
