"""Make what this directory ships; `README.md` beside this file says what each file is.

    python weights/make.py [--output DIR] [--speak]

It writes the checkpoint, the converted file and the recording, and with `--speak` the speech. It
needs PyTorch and ESPnet, and espeak-ng where it has to speak:

    pip install '.[oracle]' && pip install --no-deps espnet==202511

On the same machine and with the same versions it writes the same bytes every time. Those that ship
were made on Linux x86-64 (AVX-512) by Python 3.11 with torch 2.13.0 (the CPU build), ESPnet 202511,
typeguard 4.6.0 and NumPy 2.4.6. On another kind of CPU the last bit of a weight may differ, by
2^-24 at most, and the recording by about 2e-6, because PyTorch rounds in another order there; the
tests allow for both.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import wave
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from espnet2.asr_transducer.encoder.encoder import Encoder
from espnet2.asr_transducer.frontend.online_audio_processor import OnlineAudioProcessor

import edgeconv

SPEECH = Path(__file__).with_name("speech.wav")
CONFIG = SPEECH.with_name("espnet-streaming-encoder.yaml")
SENTENCE = "One frame of speech comes in, and one frame goes out, all day long."
SAMPLE_RATE = 16_000

# ESPnet's online processor cuts the audio into windows whose features join without a gap when the
# analysis window is an even number of hops; its own default, 512 and 128 samples, is one such
# pair. Four hops of 10 ms are another, and make 25 frames per second after subsampling by 4.
HOP = SAMPLE_RATE // 100
FFT = 4 * HOP
MELS = 80

# The values that ESPnet's `Speech2Text` has as defaults: milliseconds of audio that are decoded
# at a time, and frames of the past that the attention sees.
DECODING_WINDOW = 640
LEFT_CONTEXT = 32

SEED = 0
BLOCK = {
    "block_type": "ebranchformer",
    "hidden_size": 64,
    "linear_size": 64,
    "conv_mod_kernel_size": 31,
    "num_blocks": 2,
}
# The second block: its input has been through everything that a block does.
PREFIX = "encoders.blocks.1.depthwise_conv_mod"


def build_encoder() -> Encoder:
    """Build the streaming encoder with seeded initial weights, ready for decoding."""
    torch.manual_seed(SEED)
    encoder = Encoder(
        MELS,
        [BLOCK],
        input_conf={"conv_size": 8, "subsampling_factor": 4},
        # This alone makes the convolutions causal.
        main_conf={"dynamic_chunk_training": True},
    )
    return encoder.eval()


def speak(target: Path) -> None:
    """Let espeak-ng say the sentence, and write it as 16-bit mono at 16 kHz."""
    command = ["espeak-ng", "-v", "en-gb", "-z", "--stdout", SENTENCE]
    spoken = subprocess.run(command, check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(spoken)) as source:
        rate = source.getframerate()
        # A stream's header claims the largest length; what was read is what there is.
        pcm = np.frombuffer(source.readframes(source.getnframes()), dtype="<i2")
    # Resample by cutting the spectrum. Whole periods of both rates keep the ratio exact.
    period = rate // np.gcd(rate, SAMPLE_RATE)
    pcm = np.pad(pcm, (0, -len(pcm) % period))
    length = len(pcm) * SAMPLE_RATE // rate
    spectrum = np.fft.rfft(pcm)[: length // 2 + 1]
    resampled = np.fft.irfft(spectrum, length) * (length / len(pcm))
    with wave.open(str(target), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(resampled.round().clip(-(2**15), 2**15 - 1).astype("<i2").tobytes())


def read_speech(path: Path) -> torch.Tensor:
    """Read the recording as samples within +-1."""
    with wave.open(str(path)) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    return torch.from_numpy(pcm.astype(np.float32) / 2**15)


def mel_filters() -> torch.Tensor:
    """Return triangular filters at equal distances on the mel scale, (FFT // 2 + 1, MELS)."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, MELS + 2) / 2595) - 1)
    frequencies = np.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1)[:, None]
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    rise, fall = (frequencies - low) / (centre - low), (high - frequencies) / (high - centre)
    return torch.from_numpy(np.minimum(rise, fall).clip(0).astype(np.float32))


def log_mel(samples: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-mel energies (B, T, MELS) and their lengths, in place of ESPnet's `LogMel`.

    The formula is ESPnet's, with HTK's mel scale. Its own class imports librosa, which brings far
    more than the rest of this project needs.
    """
    spectrum = torch.stft(samples, FFT, HOP, window=torch.hann_window(FFT), return_complex=True)
    mel = spectrum.abs().square().transpose(1, 2) @ mel_filters()
    return mel.clamp(min=1e-10).log(), lengths // HOP + 1


def stream(encoder: Encoder, samples: torch.Tensor) -> None:
    """Encode the speech window by window, as the streaming `Speech2Text` of ESPnet does."""
    audio = OnlineAudioProcessor(
        log_mel,
        normalization_module=None,
        decoding_window=DECODING_WINDOW,
        encoder_sub_factor=encoder.embed.subsampling_factor,
        frontend_conf={"n_fft": FFT, "hop_length": HOP},
        device=torch.device("cpu"),
        audio_sampling_rate=SAMPLE_RATE,
    )
    encoder.reset_cache(LEFT_CONTEXT, torch.device("cpu"))
    processed = torch.tensor([[0]])
    windows = samples.split(audio.decoding_samples)
    for number, window in enumerate(windows, start=1):
        features, length = audio.compute_features(window, is_final=number == len(windows))
        encoded = encoder.chunk_forward(features, length, processed, left_context=LEFT_CONTEXT)
        processed += encoded.size(1)


@torch.no_grad()
def record(encoder: Encoder, samples: torch.Tensor) -> dict[str, np.ndarray]:
    """Return what went into one block's depthwise convolution, and what came out of it."""
    inputs: list[np.ndarray] = []
    outputs: list[np.ndarray] = []

    def keep(_module: torch.nn.Module, arguments: tuple, results: tuple) -> None:
        inputs.append(arguments[0][0].numpy())
        outputs.append(results[0][0].numpy())

    with encoder.get_submodule(PREFIX).register_forward_hook(keep):
        stream(encoder, samples)
    return {
        "inputs": np.ascontiguousarray(np.concatenate(inputs)),
        "outputs": np.ascontiguousarray(np.concatenate(outputs)),
        "chunk_lengths": np.array([len(chunk) for chunk in inputs]),
        "frames_per_second": np.array(SAMPLE_RATE / HOP / encoder.embed.subsampling_factor),
        "prefix": np.array(PREFIX),
        "made_with": np.array(made_with()),
    }


def made_with() -> str:
    """Name what the bytes of the files depend on, besides the machine."""
    return ", ".join(f"{name} {version(name)}" for name in ("espnet", "torch", "numpy"))


def main() -> None:
    """Write the checkpoint, its converted file and the recording; the speech where it is asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=SPEECH.parent, metavar="DIR")
    parser.add_argument("--speak", action="store_true", help="let espeak-ng make the speech anew")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    # Sums over several threads are not in the same order every time.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    speech = SPEECH
    if arguments.speak or not speech.exists():
        speech = arguments.output / SPEECH.name
        speak(speech)
    encoder = build_encoder()
    checkpoint = arguments.output / "espnet-streaming-encoder.pth"
    torch.save(encoder.state_dict(), checkpoint)
    edgeconv.convert(checkpoint, checkpoint.with_suffix(".npz"), config=CONFIG)
    np.savez(arguments.output / "recording.npz", **record(encoder, read_speech(speech)))


if __name__ == "__main__":
    main()
