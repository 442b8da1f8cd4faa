"""State dicts of layers, blocks and encoders with ESPnet's names, of random numbers."""

import numpy as np


class Numbers(dict):
    """A state dict that draws what is put into it; `rng` makes it the same every time."""

    def __init__(self, seed=0):
        super().__init__()
        self.rng = np.random.default_rng(seed)

    def draw(self, name, *shape, scale=1.0, around=0.0):
        fan_in = max(1, int(np.prod(shape[1:])))
        numbers = self.rng.standard_normal(shape, np.float32) * np.float32(scale / np.sqrt(fan_in))
        self[name] = numbers + np.float32(around)

    def linear(self, name, n_outputs, n_inputs, *kernel, bias=True):
        self.draw(f"{name}.weight", n_outputs, n_inputs, *kernel)
        if bias:
            self.draw(f"{name}.bias", n_outputs, scale=0.1)

    def norm(self, name, size, kind="layer_norm"):
        if kind == "layer_norm":
            self.draw(f"{name}.weight", size, scale=0.1, around=1)
            self.draw(f"{name}.bias", size, scale=0.1)
        elif kind == "basic_norm":
            self[f"{name}.eps"] = np.array(np.log(0.25), np.float32)
        else:
            shape = (size,) if kind == "rms_norm" else ()
            self.draw(f"{name}.scale", *shape, scale=0.1, around=1)

    def attention(self, name, size, heads):
        for part in ("linear_q", "linear_k", "linear_v", "linear_out"):
            self.linear(f"{name}.{part}", size, size)
        self.linear(f"{name}.linear_pos", size, size, bias=False)
        for part in ("pos_bias_u", "pos_bias_v"):
            self.draw(f"{name}.{part}", heads, size // heads)

    def feed_forward(self, name, size, hidden):
        self.linear(f"{name}.w_1", hidden, size)
        self.linear(f"{name}.w_2", size, hidden)

    def gating(self, name, size, kernel_size, kind="layer_norm"):
        self.linear(f"{name}.conv", size // 2, 1, kernel_size)
        self.norm(f"{name}.norm", size // 2, kind)

    def conformer_convolution(self, name, size, kernel_size):
        self.linear(f"{name}.pointwise_conv1", 2 * size, size, 1)
        self.linear(f"{name}.depthwise_conv", size, 1, kernel_size)
        self.norm(f"{name}.norm", size)
        self.draw(f"{name}.norm.running_mean", size)
        self[f"{name}.norm.running_var"] = self.rng.uniform(0.5, 2, size).astype(np.float32)
        self.linear(f"{name}.pointwise_conv2", size, size, 1)

    def input(self, name, size, channels, rows, is_vgg):
        first, last = channels
        shapes = {0: (first, 1), 2: (first, first), 5: (last, first), 7: (last, last)}
        for n, shape in (shapes if is_vgg else {0: (last, 1), 2: (last, last)}).items():
            self.linear(f"{name}.conv.{n}", *shape, 3, 3)
        self.linear(f"{name}.output", size, last * rows)

    def block(self, name, options):
        kind, size, hidden = (options[n] for n in ("block_type", "hidden_size", "linear_size"))
        taps = options["conv_mod_kernel_size"]
        norms = ["norm_self_att", "norm_final"]
        self.attention(f"{name}.self_att", size, options.get("heads", 4))
        if kind != "branchformer":
            norms.append("norm_feed_forward")
            for part in ("feed_forward", "feed_forward_macaron"):
                self.feed_forward(f"{name}.{part}", size, hidden)
        if kind == "conformer":
            norms += ["norm_macaron", "norm_conv"]
            self.conformer_convolution(f"{name}.conv_mod", size, taps)
        else:
            norms.append("norm_mlp")
            self.linear(f"{name}.channel_proj1.0", hidden, size)
            self.gating(f"{name}.conv_mod", hidden, taps)
            self.linear(f"{name}.channel_proj2", size, hidden // 2)
            self.linear(f"{name}.merge_proj", size, 2 * size)
        if kind == "ebranchformer":
            norms.append("norm_feed_forward_macaron")
            taps = options.get("depth_conv_kernel_size", taps)
            self.linear(f"{name}.depthwise_conv_mod.conv", 2 * size, 1, taps)
        for norm in norms:
            self.norm(f"{name}.{norm}", size)


def encoder(kinds=("ebranchformer", "conformer"), factor=4, is_vgg=False, causal=True, seed=0):
    """Return a small encoder's state dict and configuration: 20 features, 24 wide."""
    shape = {"hidden_size": 24, "linear_size": 40, "conv_mod_kernel_size": 7, "heads": 2}
    body = [{"block_type": kind, **shape} for kind in kinds]
    state = Numbers(seed)
    state.input("embed", 24, (5, 6), 4, is_vgg)
    for n, block in enumerate(body):
        state.block(f"encoders.blocks.{n}", block)
    state.norm("encoders.norm_blocks", 24)
    conf = {
        "input_conf": {
            "vgg_like": is_vgg,
            "subsampling_factor": factor,
            "conv_size": [5, 6] if is_vgg else 6,
        },
        "main_conf": {
            "dynamic_chunk_training": causal,
            "short_chunk_size": 25,
            "left_chunk_size": 4,
        },
        "body_conf": body,
    }
    return state, {"input_size": 20, "encoder_conf": conf}
