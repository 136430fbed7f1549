"""The peers' side of benchmarks/peers/compare.py, in PyTorch: a plain GPT, the layouts of NEKO and JAT as their papers describe
them over transformers' blocks, transformers' IDEFICS, and its GPT-2 that writes."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sizes
import torch
import transformers
from torch import nn
from torch.nn import functional

import tokenizers

Work = dict[str, float]
Case = tuple[Callable[[], Any], Work]


def trained(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """A training step: AdamW and the clipping of gradients."""
    learned = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=sizes.RATE, betas=sizes.BETAS, weight_decay=sizes.DECAY, fused=True)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        torch.nn.utils.clip_grad_norm_(learned, sizes.CLIP)
        optimizer.step()

    return run


class Block(nn.Module):
    """GPT-2's block with PyTorch's fused attention, without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(sizes.WIDTH) for _ in range(2)])
        self.qkv = nn.Linear(sizes.WIDTH, 3 * sizes.WIDTH, bias=False)
        self.out = nn.Linear(sizes.WIDTH, sizes.WIDTH, bias=False)
        self.up = nn.Linear(sizes.WIDTH, sizes.HIDDEN, bias=False)
        self.down = nn.Linear(sizes.HIDDEN, sizes.WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, positions, width) → the same."""
        rows, length, _ = x.shape
        qkv = self.qkv(self.norms[0](x)).view(rows, length, 3, sizes.HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*qkv, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, -1))
        return x + self.down(functional.gelu(self.up(self.norms[1](x)), approximate="tanh"))


class GPT(nn.Module):
    """A plain GPT with a tied output."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(sizes.VOCABULARY, sizes.WIDTH), nn.Embedding(length, sizes.WIDTH)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.Sequential(*(Block() for _ in range(sizes.LAYERS)))
        self.norm = nn.LayerNorm(sizes.WIDTH)

    def forward(self, tokens: torch.Tensor, predicting: torch.Tensor) -> torch.Tensor:
        """Ids (rows, positions) → logits at the positions that are `predicting`."""
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.norm(self.blocks(x)[:, predicting]) @ self.tokens.weight.T


def _gato_tokens() -> torch.Tensor:
    """(rows, positions): a row of environment steps, each number a token, with a separator."""
    return torch.randint(sizes.VOCABULARY, (sizes.ROWS, sizes.GATO_STEPS * (sizes.OBSERVED + 1 + sizes.ACTED)))


def _acted(tokens: torch.Tensor) -> torch.Tensor:
    """Which positions of a row are numbers of an action."""
    return torch.arange(tokens.shape[1]) % (sizes.OBSERVED + 1 + sizes.ACTED) > sizes.OBSERVED


def train_gpt() -> Case:
    """The plain GPT on as many tokens. Like ours it computes logits and losses of actions alone."""
    tokens = _gato_tokens()
    model, acted = GPT(tokens.shape[1]), _acted(tokens)
    predicting = acted.roll(-1)  # the position before each; a row begins with an observation

    def loss() -> torch.Tensor:
        return functional.cross_entropy(model(tokens, predicting).flatten(0, 1), tokens[:, acted].flatten())

    return trained(model, loss), {"environment steps": sizes.ROWS * sizes.GATO_STEPS, "positions": tokens.numel()}


class Neko(nn.Module):
    """NEKO's layout: transformers' GPT-2 blocks over embeddings of tokens, and an output that is not tied."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.GPT2Config(
            n_embd=sizes.WIDTH,
            n_layer=sizes.LAYERS,
            n_head=sizes.HEADS,
            n_inner=sizes.HIDDEN,
            vocab_size=1,
            attn_implementation="eager",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        self.blocks = transformers.GPT2Model(config)
        self.tokens = nn.Embedding(sizes.VOCABULARY, sizes.WIDTH)
        self.output = nn.Linear(sizes.WIDTH, sizes.VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Ids (rows, positions) → logits."""
        return self.output(self.blocks(inputs_embeds=self.tokens(tokens), use_cache=False).last_hidden_state)


def train_neko() -> Case:
    """The loss is on actions alone, of the logits of all positions."""
    tokens, model = _gato_tokens(), Neko()
    acted = _acted(tokens)

    def loss() -> torch.Tensor:
        logits = model(tokens)[:, acted.roll(-1)]
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, acted].flatten())

    return trained(model, loss), {"environment steps": sizes.ROWS * sizes.GATO_STEPS, "positions": tokens.numel()}


def act_neko() -> Case:
    """An action number by number; each computes the window of our presets anew, since NEKO has no cache."""
    model = Neko().eval()
    tokens = torch.randint(sizes.VOCABULARY, (1, sizes.WINDOW * (sizes.OBSERVED + 1 + sizes.ACTED)))

    @torch.no_grad()
    def run() -> None:
        for number in range(sizes.ACTED):
            model(tokens[:, : tokens.shape[1] - sizes.ACTED + number])[:, -1].argmax(-1).item()

    return run, {"environment steps": 1}


class Jat(nn.Module):
    """JAT's layout: an embedding for an observation and one for an action; each predicts what follows, by mean squared error."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.GPTNeoConfig(
            hidden_size=sizes.WIDTH,
            num_layers=sizes.LAYERS,
            attention_types=[[["global", "local"], sizes.LAYERS // 2]],
            num_heads=sizes.HEADS,
            intermediate_size=sizes.HIDDEN,
            max_position_embeddings=512,
            vocab_size=1,
            resid_dropout=0.0,
            embed_dropout=0.0,
            attention_dropout=0.0,
        )
        self.blocks = transformers.GPTNeoModel(config)
        self.observed, self.acted = nn.Linear(sizes.OBSERVED, sizes.WIDTH), nn.Linear(sizes.ACTED, sizes.WIDTH)
        self.observation, self.action = nn.Linear(sizes.WIDTH, sizes.OBSERVED), nn.Linear(sizes.WIDTH, sizes.ACTED)

    def embed(self, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """(rows, steps, numbers) each → (rows, 2 · steps, width), an observation before its action."""
        return torch.stack([self.observed(observations), self.acted(actions)], dim=2).flatten(1, 2)


def train_jat() -> Case:
    """Losses on observations and actions, JAT's default."""
    model = Jat()
    observations = torch.rand(sizes.ROWS, sizes.EMBEDDED_STEPS, sizes.OBSERVED) * 2 - 1
    actions = torch.rand(sizes.ROWS, sizes.EMBEDDED_STEPS, sizes.ACTED) * 2 - 1

    def loss() -> torch.Tensor:
        hidden = model.blocks(inputs_embeds=model.embed(observations, actions), use_cache=False).last_hidden_state
        of_action = functional.mse_loss(model.action(hidden[:, ::2]), actions)
        return of_action + functional.mse_loss(model.observation(hidden[:, 1:-1:2]), observations[:, 1:])

    steps = sizes.ROWS * sizes.EMBEDDED_STEPS
    return trained(model, loss), {"environment steps": steps, "positions": 2 * steps}


def act_jat() -> Case:
    """An action of one environment, with a cache of the window that our presets have; the action's embedding is fed with the
    next observation's."""
    model = Jat().eval()
    observation, action = torch.rand(1, 1, sizes.OBSERVED), torch.rand(1, 1, sizes.ACTED)
    with torch.no_grad():
        before = model.embed(observation.expand(1, sizes.WINDOW, -1), action.expand(1, sizes.WINDOW, -1))
        held = model.blocks(inputs_embeds=before, use_cache=True).past_key_values

    @torch.no_grad()
    def run() -> None:
        new = torch.cat([model.acted(action), model.observed(observation)], dim=1)
        hidden = model.blocks(inputs_embeds=new, past_key_values=held, use_cache=True).last_hidden_state
        model.action(hidden[:, -1]).numpy()
        held.crop(-2)  # the window moves on: its length stays

    return run, {"environment steps": 1}


def clip_folder(folder: str) -> None:
    """Writes a frozen encoder of random weights, CLIP's kind, for our side."""
    config = transformers.CLIPVisionConfig(
        hidden_size=sizes.WIDTH,
        intermediate_size=sizes.HIDDEN,
        num_hidden_layers=sizes.LAYERS,
        num_attention_heads=sizes.HEADS,
        image_size=sizes.PIXELS,
        patch_size=sizes.PATCH,
    )
    transformers.CLIPVisionModel(config).save_pretrained(folder)


def gpt2_folder(folder: str) -> None:
    """Writes a language model of random weights in GPT-2's smallest shape; each byte is a token, the other tokens have names."""
    config = transformers.GPT2Config(
        n_embd=sizes.GPT2["width"], n_layer=sizes.GPT2["layers"], n_head=sizes.GPT2["heads"]
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    bytes_ = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    names = [*bytes_, *(f"token{number}" for number in range(len(bytes_), config.vocab_size))]
    text = tokenizers.Tokenizer(tokenizers.models.BPE({name: id for id, name in enumerate(names)}, []))
    text.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    text.decoder = tokenizers.decoders.ByteLevel()
    text.save(str(Path(folder) / "tokenizer.json"))


def write(rows: int, folder: str) -> Case:
    """Continues prompts greedily, with a cache."""
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    prompts = torch.randint(256, (rows, sizes.PROMPT))

    @torch.no_grad()
    def run() -> None:
        model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            min_new_tokens=sizes.WRITTEN,
            max_new_tokens=sizes.WRITTEN,
            pad_token_id=0,
        )

    return run, {"text tokens": rows * sizes.WRITTEN}


def train_idefics() -> Case:
    """Images through a frozen encoder, the resampler and gated cross-attention before every block of a frozen language model."""
    config = transformers.IdeficsConfig(
        vocab_size=sizes.VOCABULARY,
        hidden_size=sizes.WIDTH,
        intermediate_size=sizes.HIDDEN,
        num_hidden_layers=sizes.LAYERS,
        num_attention_heads=sizes.HEADS,
        cross_layer_interval=1,
        freeze_lm_head=True,
        use_resampler=True,
        tie_word_embeddings=True,
        vision_config={
            "embed_dim": sizes.WIDTH,
            "image_size": sizes.PIXELS,
            "patch_size": sizes.PATCH,
            "intermediate_size": sizes.HIDDEN,
            "num_hidden_layers": sizes.LAYERS,
            "num_attention_heads": sizes.HEADS,
        },
        perceiver_config={
            "use_resampler": True,
            "resampler_n_latents": sizes.LATENTS,
            "resampler_depth": sizes.RESAMPLER_LAYERS,
            "resampler_n_heads": sizes.GATED_HEADS,
            "resampler_head_dim": sizes.GATED_SIZE,
        },
    )
    model = transformers.IdeficsForVisionText2Text(config)
    for parameter in model.model.embed_tokens.parameters():
        parameter.requires_grad_(False)
    tokens = torch.randint(sizes.VOCABULARY, (sizes.ROWS, sizes.TEXT))
    pixels = torch.rand(sizes.ROWS, sizes.IMAGES, 3, sizes.PIXELS, sizes.PIXELS)
    # A position sees the last image before it.
    seen = torch.arange(sizes.TEXT)[:, None] // (sizes.TEXT // sizes.IMAGES) == torch.arange(sizes.IMAGES)[None]
    seen = seen[None].expand(sizes.ROWS, -1, -1).long()

    def loss() -> torch.Tensor:
        return model(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            pixel_values=pixels,
            image_attention_mask=seen,
            labels=tokens,
            use_cache=False,
        ).loss

    return trained(model, loss), {"text tokens": tokens.numel()}


CASES: dict[str, Callable[..., Case]] = {
    "gpt": train_gpt,
    "neko": train_neko,
    "jat": train_jat,
    "idefics": train_idefics,
    "act neko": act_neko,
    "act jat": act_jat,
    "write": functools.partial(write, 1),
    "write 8": functools.partial(write, 8),
}
torch.manual_seed(0)
torch.set_num_threads(len(os.sched_getaffinity(0)))
