"""A tiny transducer with ESPnet's names, of random numbers that speak."""

from typing import NamedTuple

import numpy as np
from encoder_states import Numbers
from encoder_states import encoder as encoder_state

WORDS = ["<blank>", "<unk>", "one", "two", "three", "four", "five", "six", "seven"]
WORDS += ["eight", "nine", "ten", "<eos>"]
# Layers, their type, and a seed with which a model of random numbers says different words.
KINDS = {"stateless": (0, "lstm", 1), "lstm": (2, "lstm", 2), "gru": (1, "gru", 0)}


def mels(n_fft=512, n_mels=20):
    """Return filters that are triangles, each from the middle of the one before it."""
    bins, width = np.arange(n_fft // 2 + 1)[:, None], n_fft / 2 / (n_mels + 1)
    distance = np.abs(bins / width - np.arange(1, n_mels + 1))
    return np.maximum(0, 1 - distance).astype(np.float32)


def recogniser(decoder="lstm", causal=True, **fields):
    """Return a state dict and a configuration; `fields` are of the configuration."""
    n_layers, rnn_type, seed = KINDS[decoder]
    encoder, configuration = encoder_state(causal=causal, seed=seed)
    n_fft = fields.get("frontend_conf", {}).get("n_fft", 512)
    width, embed, hidden, n_tokens = 24, 10, 12 if n_layers else 10, len(WORDS)
    state = Numbers(seed + 1)
    state.update({f"encoder.{name}": array for name, array in encoder.items()})
    state["frontend.logmel.melmat"] = mels(n_fft)
    state["normalize.mean"] = state.rng.normal(-5, 1, 20)
    state["normalize.std"] = state.rng.uniform(2, 4, 20)
    state.draw("decoder.embed.weight", n_tokens, embed, scale=3)
    state["decoder.embed.weight"][0] = 0
    for n in range(n_layers):
        gates = (4 if rnn_type == "lstm" else 3) * hidden
        state.draw(f"decoder.rnn.{n}.weight_ih_l0", gates, hidden if n else embed)
        state.draw(f"decoder.rnn.{n}.weight_hh_l0", gates, hidden)
        state.draw(f"decoder.rnn.{n}.bias_ih_l0", gates)
        state.draw(f"decoder.rnn.{n}.bias_hh_l0", gates)
    state.draw("joint_network.lin_enc.weight", 16, width, scale=4)
    state.draw("joint_network.lin_enc.bias", 16)
    state.linear("joint_network.lin_dec", 16, hidden, bias=False)
    state.draw("joint_network.lin_out.weight", n_tokens, 16, scale=5)
    state.draw("joint_network.lin_out.bias", n_tokens)
    state["joint_network.lin_out.weight"][0] = 0
    state["joint_network.lin_out.bias"][0] = 8  # most frames say nothing
    configuration |= {
        "input_size": None,
        "token_list": WORDS,
        "token_type": "word",
        "decoder": "rnn" if n_layers else "stateless",
        "decoder_conf": {"rnn_type": rnn_type, "num_layers": n_layers} if n_layers else {},
        "frontend_conf": {"n_fft": n_fft},
        "normalize": "global_mvn",
        **fields,
    }
    return state, configuration


def speech(n_samples, seed=0):
    """Return noise in [-1, 1] whose loudness and colour change as those of speech do."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(n_samples)
    coloured = np.convolve(noise, rng.standard_normal(9))[:n_samples] if n_samples else noise
    syllables = np.repeat(rng.uniform(0, 0.1, n_samples // 1600 + 1) ** 2 * 8, 1600)[:n_samples]
    mixed = np.where(np.arange(n_samples) // 2400 % 2, coloured, noise)
    return np.clip(mixed * syllables, -1, 1).astype(np.float32)


class Hypothesis(NamedTuple):
    """Tokens, the encoder frames where they came, and the logarithm of their probability."""

    tokens: list
    frames: list
    score: float


def best_of(search):
    """Return the best hypothesis of a search."""
    agreed, own, score = search.found()
    pairs = agreed + own
    return Hypothesis([token for token, _ in pairs], [frame for _, frame in pairs], score)
