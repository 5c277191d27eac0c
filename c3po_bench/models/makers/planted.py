"""Trains the testbed's weights, in about a minute and a half.

`python -m c3po_bench.models.makers.planted [softmax|sigmoid] [FILE]`: of OLMoE, or of the sigmoid-routed
sibling.

Three things make the planted pathways the best ones:

- The last token's routing in the planted layers is *prescribed*, not chosen: a domain's planted pathway, or a
  blend of it with weights drawn at random, mixed over the top two or over all experts. The answer asked for
  is the code of that domain, whoever is named. So only the routing decides which code is used, and an
  expert's say grows with its weight.
- The router learns the domain of each common name; for a rare one it learns its own guess (`world.guess`).
- Topic words are drawn from all domains at random: neither the experts nor the router can learn from them.

In half of the steps other questions with their answers stand before the question, so that examples do no
harm.
"""

import logging
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from c3po_bench.models.embedded.planted import CONFIGS, weights_of
from c3po_bench.models.embedded.planted_world import (
    ARGUMENTS,
    CONFIDENCE,
    DOMAINS,
    EXPERTS,
    LAYERS,
    OWNED,
    TOPIC_WORDS,
    TOPICS,
    planted_pathway,
    vocabulary,
    world,
)

log = logging.getLogger(__name__)

SEED = 0
STEPS = 360
BATCH = 128
LEARNING_RATE = 3e-3
SHOTS = (0, 0, 0, 1, 2, 4)
"""Examples before the question, by turns."""


def ids(words: list[str]) -> Tensor:
    """Token ids of words."""
    number = {word: i for i, word in enumerate(vocabulary())}
    return torch.tensor([number[word] for word in words])


@dataclass
class Batch:
    """Questions: token ids [batch, length], argument number, whose domain the name is, what the router should say.

    `belief` is [batch, planted layers, experts].
    """

    tokens: Tensor
    argument: Tensor
    domain: Tensor
    rare: Tensor
    belief: Tensor


class Sampler:
    """Draws training questions."""

    def __init__(self, generator: torch.Generator):
        facts = world()
        self.generator = generator
        self.topics = ids([word for words in TOPICS.values() for word in words])
        self.common = torch.stack([ids(facts.common[domain]) for domain in DOMAINS])
        self.rare = ids([name for domain in DOMAINS for name in facts.rare[domain]])
        guesses = [facts.guess[name] for domain in DOMAINS for name in facts.rare[domain]]
        self.guess = torch.tensor([DOMAINS.index(domain) for domain in guesses])
        self.arguments = ids(ARGUMENTS)
        self.code = torch.stack([ids([facts.code[domain][a] for a in ARGUMENTS]) for domain in DOMAINS])
        self.planted = torch.tensor([planted_pathway(domain) for domain in DOMAINS])

    def below(self, high: int, *size: int) -> Tensor:
        """Random integers."""
        return torch.randint(high, size, generator=self.generator)

    def batch(self, size: int, shots: int) -> Batch:
        """`size` questions with `shots` answered ones before each."""
        parts = []
        for _ in range(shots):
            shot = self.questions(size)
            parts += [shot.tokens, self.code[shot.domain, shot.argument][:, None]]
        last = self.questions(size)
        last.tokens = torch.cat([*parts, last.tokens], dim=1)
        return last

    def questions(self, size: int) -> Batch:
        """Half with common names, half with rare ones; the prompt ends with "Answer"."""
        domain, argument = self.below(len(DOMAINS), size), self.below(len(ARGUMENTS), size)
        rare = torch.rand(size, generator=self.generator) < 0.5
        which = self.below(len(self.rare), size)
        name = torch.where(
            rare, self.rare[which], self.common[domain, self.below(self.common.shape[1], size)]
        )
        topics = self.topics[self.below(len(self.topics), size, TOPIC_WORDS)]

        def fixed(words: str) -> Tensor:
            return ids(words.split()).expand(size, -1)

        subject = [fixed("Question On"), topics[:, :-1], fixed("and"), topics[:, -1:]]
        asked_for = [name[:, None], fixed("pair with"), self.arguments[argument][:, None], fixed("Answer")]
        tokens = torch.cat([*subject, fixed("which word does"), *asked_for], dim=1)
        guess = CONFIDENCE * self.planted[self.guess[which]] + (1 - CONFIDENCE) / EXPERTS
        belief = torch.where(rare[:, None, None], guess, self.planted[domain])
        return Batch(tokens, argument, domain, rare, belief)

    def prescribed_weights(self, domain: Tensor) -> Tensor:
        """The mixing weights [batch, planted layers, experts] that stand for `domain` in this step.

        Two in five are the planted pathway itself; the others keep 0.4 to 1 of it in each layer, the rest
        going to a few experts at random. Half are then cut to their top two, as the model does.
        """
        size, planted = len(domain), self.planted[domain]
        kept = 0.4 + 0.6 * torch.rand(size, len(LAYERS), 1, generator=self.generator)
        pure = torch.rand(size, 1, 1, generator=self.generator) < 0.4
        kept = torch.where(pure, torch.ones(()), kept)
        noise = torch.rand(size, len(LAYERS), EXPERTS, generator=self.generator).pow(4) + 1e-3
        weights = kept * planted + (1 - kept) * noise / noise.sum(-1, keepdim=True)
        top = torch.zeros_like(weights).scatter(-1, weights.topk(OWNED, -1).indices, 1.0)
        dense = torch.rand(size, 1, 1, generator=self.generator) < 0.5
        return torch.where(dense, weights, weights * top)


def forward(model: Any, tokens: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The model with its last token's routing prescribed in the planted layers.

    Returns:
        Last-token logits [batch, vocabulary], and what the routers themselves say there, as logits
        [batch, planted layers, experts].
    """
    decoder, hidden = model.model, model.model.embed_tokens(tokens)
    positions = torch.arange(tokens.shape[1])[None]
    rotary = decoder.rotary_emb(hidden, positions)
    router_logits = []
    for number, layer in enumerate(decoder.layers):
        if number not in LAYERS:
            hidden = layer(hidden, attention_mask=None, position_ids=positions, position_embeddings=rotary)
            continue
        attended, _ = layer.self_attn(
            layer.input_layernorm(hidden), position_embeddings=rotary, attention_mask=None
        )
        hidden = hidden + attended
        inner = layer.post_attention_layernorm(hidden)
        last = inner[:, -1]
        router_logits.append(F.linear(last, layer.mlp.gate.weight))
        gate, up = torch.einsum("bh,eoh->beo", last, layer.mlp.experts.gate_up_proj).chunk(2, dim=-1)
        outputs = torch.einsum("beo,eho->beh", F.silu(gate) * up, layer.mlp.experts.down_proj)
        mixed = torch.einsum("be,beh->bh", weights[:, LAYERS.index(number)], outputs)
        hidden = hidden + torch.cat([layer.mlp(inner)[:, :-1], mixed[:, None]], dim=1)
    return model.lm_head(decoder.norm(hidden)[:, -1]), torch.stack(router_logits, dim=1)


def train(score: str = "softmax", steps: int = STEPS, seed: int = SEED) -> Any:
    """A trained testbed whose routers' scores are `score`.

    The same for the same seed, threads and version of torch.
    """
    torch.manual_seed(seed)
    sampler = Sampler(torch.Generator().manual_seed(seed))
    model = AutoModelForCausalLM.from_config(CONFIGS[score]())
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        warm, decay = min(1.0, (step + 1) / 50), 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * warm * (0.02 + 0.98 * decay)
        batch = sampler.batch(BATCH, SHOTS[step % len(SHOTS)])
        any_domain = sampler.below(len(DOMAINS), BATCH)
        used = torch.where(batch.rare, any_domain, batch.domain)
        weights = sampler.prescribed_weights(used)
        if score == "sigmoid":  # whose blocks divide by the sum of what they select
            weights = weights / weights.sum(-1, keepdim=True)
        logits, router_logits = forward(model, batch.tokens, weights)
        answer = F.cross_entropy(logits, sampler.code[used, batch.argument])
        if score == "sigmoid":
            router = F.binary_cross_entropy_with_logits(router_logits, batch.belief) * EXPERTS
        else:
            router = -(batch.belief * router_logits.log_softmax(-1)).sum(-1).mean()
        optimizer.zero_grad()
        (answer + router).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            log.info("step %d: answer %.3f, router %.3f", step, answer.item(), router.item())
    return model.eval()


def main() -> None:
    """Train on one core and write the weights, as float16."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    score = sys.argv[1] if len(sys.argv) > 1 else "softmax"
    path = Path(sys.argv[2]) if len(sys.argv) > 2 else weights_of(score)
    weights = {name: tensor.half().contiguous() for name, tensor in train(score).state_dict().items()}
    save_file(weights, path, metadata={"made_by": "c3po_bench.models.makers.planted", "seed": str(SEED)})
    log.info("wrote %s (%.1f MB)", path, path.stat().st_size / 1e6)


if __name__ == "__main__":
    main()
