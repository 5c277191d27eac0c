"""FLOPs of a transformer's passes, from the shapes of its weights: nothing is run, no operation is counted.

A pass of `rows` sequences of `tokens` tokens, each of which sees `keys` tokens, multiplies in one layer

    rows tokens (dense + top_k expert) + rows tokens keys attention + rows keys latent

pairs of numbers and adds them up, which are twice as many FLOPs (`LayerShape` says what the sizes are). A
gradient towards what entered the layer takes the same products once more, and attention's twice, since
queries and keys both have one. Padding and masked keys count, for they are computed; experts of weight 0 do
not. What is no product of matrices is left out: norms, activations, softmax, positions, under 1% of a pass.

What a model is not known to do is never guessed: its FLOPs are NaN, which results show as null.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import nan
from typing import Any

IN_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.(.+)")
FIRST_LAYER = re.compile(r"(?:^|\.)layers?\.0$")
ADAPTER = re.compile(r"\.(lora_[AB])\.([^.]+)")
QUERIES = ("q_proj", "q_b_proj", "query")
ENTRY = (
    *("q_proj", "query", "k_proj", "v_proj", "key", "value", "q_a_proj", "kv_a_proj_with_mqa"),
    *("self_attn.gate_proj", "self_attn.g_proj"),
)
OUTPUTS = ("o_proj", "attention.output.dense")
LATENT = "kv_b_proj"
ROUTERS = ("gate", "router", "gate.wg")
DENSE = (
    *(*QUERIES, *OUTPUTS, *ENTRY),
    *(*ROUTERS, "shared_expert_gate", "shared_mlp.input_linear", "shared_mlp.output_linear"),
    *("gate_proj", "up_proj", "down_proj"),
    *("intermediate.dense", "output.dense", "lora_A", "lora_B"),
)
"""Modules of a layer, by the end of their names, whose weight meets every token once."""
OF_EXPERTS = ("gate_up_proj", "down_proj")
"""Weights of all routed experts in one, [experts, ...]."""


@dataclass(frozen=True)
class LayerShape:
    """Numbers that one layer multiplies.

    dense: for a token: projections, router, shared experts or a dense MLP.
    expert: for a token and one routed expert.
    top_k: routed experts that a token mixes.
    attention: for a token and a key that it sees: width of all heads' queries plus that of their values.
    latent: for a key, where keys and values are made from latents in each pass (multi-head latent attention).
    entry: of `dense` the projections of what enters the layer, to queries, keys and values.
    """

    dense: float
    expert: float = 0
    top_k: int = 0
    attention: float = 0
    latent: float = 0
    entry: float = 0


@dataclass(frozen=True)
class ItemSize:
    """Sizes of a question with choices, in tokens, and of its rewiring by gradient descent."""

    critical: int
    prompt: int
    answer: int
    choices: int
    experts: int  # of a layer
    core: int  # experts that a step mixes
    neighbors: int
    steps: int


@dataclass(frozen=True)
class ModelShape:
    """The layers of a model, and `head`, what its head multiplies for a token.

    Without layers it is unknown: all FLOPs are NaN.
    """

    layers: tuple[LayerShape, ...]
    head: float

    def forward(self, span: range, rows: int, tokens: int, keys: int) -> float:
        """Pass [rows, tokens] that see `keys` tokens each through the layers of `span`."""

        def layer(shape: LayerShape) -> float:
            each = shape.dense + shape.top_k * shape.expert + keys * shape.attention
            return rows * (tokens * each + keys * shape.latent)

        return self._sum(span, layer)

    def gradient(self, span: range, rows: int, tokens: int, keys: int, constant_keys: int = 0) -> float:
        """The gradient of that pass towards what entered it; `constant_keys` do not depend on that."""
        again = self._sum(span, lambda shape: rows * tokens * (keys - constant_keys) * shape.attention)
        return self.forward(span, rows, tokens, keys) + again

    def mixing(self, layers: Iterable[int], pairs: int) -> float:
        """`pairs` of a token and a routed expert in each of `layers`, beyond the model's own top-k."""
        return sum(self._sum(range(i, i + 1), lambda shape: pairs * shape.expert) for i in layers)

    def logits(self, tokens: int) -> float:
        """The head at `tokens` tokens; its gradient costs the same."""
        return 2 * tokens * self.head

    def score(
        self,
        span: range,
        size: Sequence[int],
        targets: int,
        overridden: Iterable[int] = (),
        more: int = 0,
        lowest: int | None = None,
        constant_keys: int = 0,
    ) -> float:
        """A pass through the layers of `span` and the head, and its gradient if one is taken.

        Args:
            span: layers.
            size: rows, tokens and keys.
            targets: tokens at which the head is asked.
            overridden: layers in which `more` pairs of a token and an expert are mixed beyond the top-k.
            more: see there.
            lowest: the layer down to which a gradient is taken; None where there is none.
            constant_keys: keys that do not depend on the pass.
        """
        cost = self.forward(span, *size) + self.mixing(overridden, more) + self.logits(targets)
        if lowest is not None:
            cost += self.gradient(range(lowest, span.stop), *size, constant_keys=constant_keys)
            cost += self.mixing((i for i in overridden if i >= lowest), more) + self.logits(targets)
        return cost

    def training(self, rows: int, tokens: int, keys: int, reach: float, weights: int) -> float:
        """A pass through all layers, its gradient, and that of trained `weights` that meet every token.

        `reach` is how far down the gradient goes: 3 is through layer 3, 3.5 the same less the projections of
        what enters it. The head comes on top, once for the pass and once for its gradient.
        """
        lowest, size = int(reach), (rows, tokens, keys)
        entry = range(lowest, lowest + (reach > lowest))
        spared = self._sum(entry, lambda shape: rows * tokens * shape.entry)
        whole = self.score(self.span, size, 0, lowest=lowest)
        return whole - spared + 2 * rows * tokens * weights

    def rewiring(self, item: ItemSize) -> dict[str, float]:
        """What an item costs under the engine `suffix`, by phase.

        It is read once, descended `steps` times and scored once. The critical layers are the last ones, and
        the neighbors are as long as the item; of each, one answer is descended.
        """
        prompt, answer, depth = item.prompt, item.answer, len(self.layers)
        branches, first = item.choices * (answer - 1), depth - item.critical
        above, reopened, more = (
            range(first, depth),
            range(first + 1, depth),
            item.core - self.layers[-1].top_k,
        )
        read = self.forward(range(first), 1, prompt + branches, prompt + branches)
        read += self.forward(above, 1, prompt, prompt)
        size = (1, answer, prompt - 1 + answer)
        opened = self.forward(above[:1], *size) + self.mixing(above[:1], item.experts)
        step = self.score(reopened, size, answer, reopened, more, first + 1, prompt - 1)
        score = self.score(above, (1, 1 + branches, prompt + branches), item.choices * answer)
        return {"read": read, "optimize": item.neighbors * (opened + item.steps * step), "score": score}

    @property
    def span(self) -> range:
        """Of all layers."""
        return range(len(self.layers))

    def _sum(self, span: range, multiplied: Callable[[LayerShape], float]) -> float:
        return 2 * sum(map(multiplied, self.layers[span.start : span.stop])) if self.layers else nan


UNKNOWN = ModelShape((), nan)


def shape_of(model: Any, adapter: str | None = "default") -> ModelShape:
    """The shape of a transformers model with one of its LoRA adapters, or none; `UNKNOWN` if it is not covered.

    Covered are decoders of the families and of Llama's kind, and encoders of BERT's.
    """
    config, layers = model.config, {}
    for name, parameter in model.named_parameters():
        lora = ADAPTER.search(name)
        if lora and lora[2] != adapter:
            continue
        if match := IN_LAYER.search(ADAPTER.sub(r".\1", name.replace(".base_layer", ""))):
            layers.setdefault(int(match[1]), {})[match[2]] = tuple(parameter.shape)
    shapes = [_layer_of(layers[i], getattr(config, "num_experts_per_tok", None)) for i in sorted(layers)]
    if None in shapes or len(shapes) != config.num_hidden_layers:
        return UNKNOWN
    return ModelShape(tuple(filter(None, shapes)), config.hidden_size * config.vocab_size)


def _layer_of(weights: Mapping[str, tuple[int, ...]], top_k: int | None) -> LayerShape | None:
    """The shape of a layer from its parameters' shapes by name; None for a parameter that is not known."""
    dense = expert = latent = entry = 0
    queries, values = [], []
    for name, shape in weights.items():
        module, _, kind = name.rpartition(".")
        in_experts = module.endswith("experts")
        if len(shape) < 2 or kind.endswith("correction_bias") or (in_experts and kind.endswith("_bias")):
            continue
        if in_experts and kind in OF_EXPERTS and len(shape) == 3 and top_k:
            expert += shape[1] * shape[2]
        elif kind == "weight" and len(shape) == 2 and _ends(module, (*DENSE, LATENT)):
            size = shape[0] * shape[1]
            dense, latent = (dense, latent + size) if _ends(module, (LATENT,)) else (dense + size, latent)
            entry += size if _ends(module, ENTRY) else 0
            queries += [shape[0]] if _ends(module, QUERIES) else []
            values += [shape[1]] if _ends(module, OUTPUTS) else []
        else:
            return None
    if len(queries) != 1 or len(values) != 1:
        return None
    return LayerShape(dense, expert, top_k if expert and top_k else 0, queries[0] + values[0], latent, entry)


def trained_part(parameters: Mapping[str, Any], width: int) -> tuple[float, int]:
    """What `ModelShape.training` must know of the trained parameters, by name, of a model `width` wide.

    Returns:
        How far down the gradient goes: to the entry of the first layer for embeddings, into the layer for
        weights in it or keys and values before it, but only above the layer for its router. And the number of
        trained weights that meet every token.
    """
    reach: list[float] = []
    weights = 0
    for name, parameter in parameters.items():
        match = IN_LAYER.search(name)
        if match is None:
            reach.append(0 if parameter.shape[-1] == width else 0.5)
            continue
        module, _, kind = match[2].rpartition(".")
        reach.append(int(match[1]) + (1 if _ends(module, ROUTERS) else 0.5))
        weights += parameter.numel() if kind == "weight" and parameter.dim() == 2 else 0
    return min(reach), weights


def _ends(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


@contextmanager
def counting(
    model: Any, shape: ModelShape, trained: tuple[float, int] | None = None
) -> Iterator[list[float]]:
    """FLOPs of the passes of `model` within the block, as they come; none of a model without layers.

    For what calls the model by itself, as lm-eval, `generate` and trainers do: virtual tokens, caches and the
    tokens at which the head is asked are seen. Where weights are `trained` (see `trained_part`), a pass with
    a gradient costs that of its gradient, too, and one more pass where checkpointing computes the layers
    again.
    """
    import torch  # the formulas alone, which a sweep's plan uses, need it not

    flops: list[float] = []

    def at_layer(layer: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        if torch._C._current_graph_task_id() != -1:  # in a backward pass, where some versions come by again
            return
        rows, tokens = (args[0] if args else inputs["hidden_states"]).shape[:2]
        cache = inputs.get("past_key_values")
        size = (rows, tokens, tokens + (cache.get_seq_length() if cache is not None else 0))
        once = shape.forward(shape.span, *size)
        if trained is None or not torch.is_grad_enabled():
            flops.append(once)
        else:
            again = layer.training and getattr(layer, "gradient_checkpointing", False)
            flops.append(shape.training(*size, *trained) + (once if again else 0))

    def at_head(_module: Any, args: tuple[Any, ...]) -> None:
        passes = 1 if trained is None or not torch.is_grad_enabled() else 2
        flops.append(passes * shape.logits(args[0][..., 0].numel()))

    named = model.named_modules() if model is not None else ()
    first = [module for name, module in named if FIRST_LAYER.search(name)][:1]
    handles = [module.register_forward_pre_hook(at_layer, with_kwargs=True) for module in first]
    if model is not None and first and (head := model.get_output_embeddings()) is not None:
        handles.append(head.register_forward_pre_hook(at_head))
    try:
        yield flops
    finally:
        for handle in handles:
            handle.remove()
