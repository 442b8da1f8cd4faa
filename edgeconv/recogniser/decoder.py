"""The decoder, or prediction network: from what was said to what may follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeconv.checkpoint.error import check_choice, counted, section
from edgeconv.layers.activation import Activation
from edgeconv.layers.layer import Array
from edgeconv.layers.parameters import Weights, tensor

EMBED = "decoder.embed.weight"


class Decoder:
    """
    ESPnet's ``StatelessDecoder`` or ``RNNDecoder``, of LSTM or GRU layers.

    `state` has ``decoder.embed.weight`` (V, E) and, unless it is stateless,
    ``decoder.rnn.<layer>.weight_ih_l0`` and so on.
    """

    def __init__(self, state: Mapping[str, Any], configuration: Mapping[str, Any]) -> None:
        kind = configuration.get("decoder", "rnn")
        check_choice("decoder", kind, ("rnn", "stateless"))
        conf = section(configuration, "decoder_conf")
        self._embed = tensor(state, EMBED, ("V", "E"))
        self.n_tokens, self.output_size = self._embed.shape
        self._layers: list[_Layer] = []
        self.state_shape: tuple[int, ...] = (0,)
        if kind == "stateless":
            return
        rnn_type = conf.get("rnn_type", "lstm")
        check_choice("rnn_type", rnn_type, ("lstm", "gru"))
        for n in range(counted(conf, "num_layers", 1)):
            self._layers.append(_Layer(state, f"decoder.rnn.{n}", self.output_size, rnn_type))
            self.output_size = self._layers[-1].size
        # Layers; hidden state and, of an LSTM, cell; their width.
        self.state_shape = len(self._layers), 2 if rnn_type == "lstm" else 1, self.output_size

    def step(self, tokens: Sequence[int], states: Array) -> tuple[Array, Array]:
        """
        Take a token for each of n hypotheses; return outputs (n, output_size) and new states.

        States are (n, *state_shape), of zeros at the start of an utterance, where the token is 0.
        """
        x, new = self._embed[np.asarray(tokens, np.int64)], np.empty_like(states)
        for n, layer in enumerate(self._layers):
            x = layer.step(x, states[:, n], new[:, n])
        return x, new


class _Layer:
    """One LSTM or GRU: a single dense layer over inputs and hidden state makes all gates."""

    def __init__(self, state: Mapping[str, Any], prefix: str, width: int, kind: str) -> None:
        n_gates = 4 if kind == "lstm" else 3
        hidden = tensor(state, f"{prefix}.weight_hh_l0", ("n", "H"))
        size = hidden.shape[1]
        hidden = tensor(state, f"{prefix}.weight_hh_l0", (n_gates * size, size))
        inputs = tensor(state, f"{prefix}.weight_ih_l0", (n_gates * size, width))
        bias_x, bias_h = (
            tensor(state, f"{prefix}.bias_{n}_l0", (n_gates * size,)) for n in ("ih", "hh")
        )
        weight = np.concatenate([inputs, hidden], axis=1)
        bias = bias_x + bias_h
        if kind == "gru":  # its last gate keeps what inputs and hidden state make apart
            last = slice(2 * size, None)
            apart = np.zeros((2 * size, width + size), np.float32)
            apart[:size, :width], apart[size:, width:] = inputs[last], hidden[last]
            weight = np.concatenate([weight[: 2 * size], apart])
            bias = np.concatenate([bias[: 2 * size], bias_x[last], bias_h[last]])
        self.size, self._is_lstm = size, kind == "lstm"
        state = {"gates.weight": weight, "gates.bias": bias}
        self._gates = Weights(state, "gates", shape=weight.shape)
        self._tanh, self._sigmoid = Activation("tanh"), Activation("sigmoid")

    def step(self, x: Array, before: Array, after: Array) -> Array:
        """Take inputs (n, E) and states (n, 2 or 1, H); write the new states, return the hidden."""
        gates = self._gates.rows(np.concatenate([x, before[:, 0]], axis=1))
        size = self.size
        if self._is_lstm:  # input, forget, cell, output
            cell = self._tanh(gates[:, 2 * size : 3 * size].copy())
            shares = self._sigmoid(gates)
            after[:, 1] = shares[:, size : 2 * size] * before[:, 1] + shares[:, :size] * cell
            after[:, 0] = shares[:, 3 * size :] * self._tanh(after[:, 1].copy())
        else:  # reset, update, new of inputs, new of hidden
            shares = self._sigmoid(gates[:, : 2 * size].copy())
            reset, update = shares[:, :size], shares[:, size:]
            new = self._tanh(gates[:, 2 * size : 3 * size] + reset * gates[:, 3 * size :])
            after[:, 0] = (1 - update) * new + update * before[:, 0]
        return np.ascontiguousarray(after[:, 0])
