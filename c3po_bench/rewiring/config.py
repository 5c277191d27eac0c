"""Options of the rewiring backend (conf/method, conf/embedder): what the paper says, what it leaves open.

Sources: paper = arXiv 2504.07964; equation numbers are those of its section 3.
"""

from dataclasses import dataclass, field

from c3po_bench.options import option


@dataclass
class KernelConfig:
    """How a neighbor's distance becomes its weight in the surrogates (paper Table 6)."""

    name: str = option(
        "gaussian", "gaussian, linear, polynomial, matern12, matern32 or matern52 (paper: gaussian)"
    )
    bandwidth: str = option(
        "median",
        "length scale: 'median' (of the neighbors' distances) or a number (the paper names none)",
    )
    degree: int = option(3, "degree of the polynomial kernel", least=0, most=1000)


@dataclass
class NeighborsConfig:
    """Which reference items are the neighbors of a test item (paper Table 4)."""

    kind: str = option("knn", "knn, or epsilon for all within a distance (paper: knn)")
    k: int = option(3, "number of nearest neighbors (paper: 3)", least=1)
    epsilon: float = option(
        0.5, "radius of the epsilon ball, in distance of unit embeddings (paper Table 4)", least=0
    )
    epsilon_most: int = option(
        16, "most neighbors kept from an epsilon ball, nearest first (no limit in the paper)", least=1
    )
    max_similarity: float = option(
        0.95,
        "references more similar than this to the test item are dropped and counted (paper: 0.95)",
        least=-1,
    )


@dataclass
class MethodConfig:
    """Pathway and optimization choices shared by all rewiring arms."""

    layers: str = option(
        "last:5",
        "critical layers: last:N, first:N, middle:N, all, a sum like first:2+last:3, or 0,3,7 (paper: last:5)",
    )
    experts: str = option(
        "top:20",
        "core experts a layer, by the model's own routing score: top:N or all (paper: top:20)",
    )
    position: str = option(
        "last",
        "tokens overridden: last (of the prompt), continuation (last and every answer token) (paper: last)",
    )
    parameterization: str = option(
        "probabilities",
        "what the optimizer moves: probabilities (clipped and renormalized after each step, paper eq. 1) "
        "or logits (their softmax keeps to the simplex); open in the paper",
    )
    mixing: str = option(
        "dense",
        "experts mixed while optimizing: hard (top-k, re-selected each step), dense (all core experts), "
        "straight_through; open in the paper",
    )
    final_mixing: str = option(
        "hard",
        "experts mixed when the answer is scored: hard (top-k, as the model) or dense (all core experts)",
    )
    preserve_total_weight: bool = option(
        False,
        "give the selected experts the total weight that they had before, which averaged pathways flatten; "
        "else what the pathway gives",
    )
    optimizer: str = option("sgd", "sgd (paper eq. 1) or adam (code of the predecessor R2-T2)")
    learning_rate: float = option(
        0.1,
        "first learning rate; the paper prints '10e-2', read here as 0.1 (the other reading is 0.01)",
        least=0,
    )
    final_learning_rate: float = option(
        1e-4, "last learning rate of the cosine schedule (paper '10e-5')", least=0
    )
    schedule: str = option(
        "cosine", "cosine, fixed or step (halved every third of the steps) (paper: cosine)"
    )
    steps: int = option(10, "gradient steps of NGD and the oracle (paper: 10)", least=0, most=10**6)
    loss: str = option(
        "nll",
        "loss on a neighbor: nll (mean negative log-likelihood of the gold answer) or choice (cross-entropy over the choices)",
    )
    neighbors: NeighborsConfig = field(default_factory=NeighborsConfig)
    kernel: KernelConfig = field(default_factory=KernelConfig)
    tune: str = option(
        "none", "none, or reference: choose the settings of each arm on held-out reference items"
    )


@dataclass
class EmbedderConfig:
    """What turns a question into the vector that neighbors are sought by (paper Table 13)."""

    name: str = option("minilm", "minilm, hidden_states or sentence_transformers (paper: NV-Embed-V2)")
    model: str | None = option(None, "sentence-transformers id or folder, for name=sentence_transformers")
    batch_size: int = option(32, "questions embedded at once", least=1)


@dataclass
class ReferencesConfig:
    """The reference set: labelled items of other tasks that rewiring may learn from (paper Table 7)."""

    tasks: list[str] = option([], "tasks whose training items are the references")
    limit: int | None = option(None, "most reference items, spread over the tasks; null = all", least=1)
    only_correct: bool = option(
        True, "keep only items that the model itself answers correctly (paper section 3)"
    )
