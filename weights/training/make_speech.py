"""Make synthetic speech with the voices of espeak-ng, flite and festival.

Writes `dev.npz`, `voices.npz` (held-out espeak-ng voices), `rms.npz` (flite's rms, whom no training
sentence has) and `train-000.npz`, `train-001.npz`, ... into a folder, each with the arrays `audio`
(all samples, int16, 16 kHz), `lengths`, `text` and `voice`.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from sentences import sentence

RATE = 16_000
ACCENTS = ["en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd"]
ACCENTS += ["en-029"]
HELD_OUT = {
    "dev": ["Alicia", "Michael", "f3", "m4", "quincy", "paul"],
    "voices": ["Andy", "Mike", "belinda", "f5", "john", "linda", "m7", "max", "steph3"],
}
UNUSABLE = {"AnxiousAndy", "Demonic", "Mr", "Storm", "UniRobot", "croak", "fast"}
UNUSABLE |= {"whisper", "whisperf"}
VOICES = {  # of training, with their shares; festival takes ten times as long as the others
    "espeak": 0.52,
    "flite:slt": 0.15,
    "flite:awb": 0.16,
    "flite:kal16": 0.11,
    "festival:ked_diphone": 0.03,
    "festival:kal_diphone": 0.01,
    "festival:cmu_us_slt_arctic_hts": 0.02,
}
PART = 3_000  # sentences of a file
RECORDED = 9  # from this part on, training speech is of flite and festival, made of people's speech


@cache
def espeak_variants() -> list[str]:
    """Return the names of espeak-ng's voice variants that are fit to train on."""
    listing = subprocess.run(
        ["espeak-ng", "--voices=variant"], check=True, capture_output=True, text=True
    ).stdout
    names = {line.split("!v/")[1].split()[0] for line in listing.splitlines()[1:] if "!v/" in line}
    return sorted(names - UNUSABLE)


def command(text: str, voice: str, wav: Path, draw: Random, vary_pitch: bool) -> list[str]:
    """Return the synthesiser's command, with a speed and pitch of its own for each sentence."""
    engine, name = voice.split(":")
    stretch = f"{draw.uniform(0.75, 1.3):.2f}"
    if engine == "espeak":
        speed, pitch, gap = draw.randint(110, 220), draw.randint(20, 80), draw.choice([0, 0, 1, 4])
        accented = f"{draw.choice(ACCENTS)}+{name}"
        options = ["-v", accented, "-s", str(speed), "-p", str(pitch), "-g", str(gap)]
        return ["espeak-ng", *options, "-w", str(wav), text]
    if engine == "flite":
        options = ["-voice", name, "--setf", f"duration_stretch={stretch}"]
        if vary_pitch:
            mean, deviation = draw.uniform(80, 220), draw.uniform(5, 45)
            options += ["--setf", f"int_f0_target_mean={mean:.0f}"]
            options += ["--setf", f"int_f0_target_stddev={deviation:.0f}"]
        return ["flite", *options, "-t", text, "-o", str(wav)]
    setting = f"(begin (voice_{name}) (Parameter.set 'Duration_Stretch {stretch}))"
    return ["text2wave", "-eval", setting, "-o", str(wav)]


def speak(text: str, voice: str, seed: int, vary: bool, vary_pitch: bool) -> np.ndarray:
    """Say a sentence.

    Parameters
    ----------
    text, voice : str
        What to say, and an engine with one of its voices: `espeak:f3`, `flite:slt`.
    seed : int
        Decides speed, pitch and the length of the vocal tract.
    vary : bool
        Whether to change the vocal tract: playing faster or slower moves the resonances with the
        pitch, and makes of one recorded person many.
    vary_pitch : bool
        Whether to change flite's pitch.

    Returns
    -------
    numpy.ndarray (samples,) int16
        At 16 kHz, peak at -3 dB, without the silence before and after.
    """
    draw = Random(seed)
    play = f"{2 ** draw.uniform(-0.28, 0.28) if vary else 1:.3f}"
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder, "speech.wav")
        spoken = command(text, voice, wav, draw, vary_pitch)
        subprocess.run(spoken, input=text.encode(), check=True, capture_output=True)
        convert = ["sox", str(wav), "-t", "raw", "-r", str(RATE), "-e", "signed", "-b", "16", "-c"]
        convert += ["1", "-", "speed", play, "rate", str(RATE), "gain", "-n", "-3"]
        raw = subprocess.run(convert, check=True, capture_output=True).stdout
    samples = np.frombuffer(raw, np.int16)
    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > 200)
    return samples[max(loud[0] - 400, 0) : loud[-1] + 400]


def voice_of(split: str, draw: Random) -> str:
    """Draw a voice for a sentence of `train-...`, `dev`, `voices` or `rms`."""
    if split == "rms":
        return "flite:rms"
    if split in HELD_OUT:
        return f"espeak:{draw.choice(HELD_OUT[split])}"
    shares = VOICES | ({"espeak": 0} if is_recorded(split) else {})
    voice = draw.choices(list(shares), shares.values())[0]
    taken = {name for names in HELD_OUT.values() for name in names}
    free = [name for name in espeak_variants() if name not in taken]
    return f"espeak:{draw.choice(free)}" if voice == "espeak" else voice


def is_recorded(split: str) -> bool:
    """Tell whether a part of the training speech is of recorded voices alone."""
    return split.startswith("train") and split >= f"train-{RECORDED:03}"


def make(split: str, count: int, folder: Path, jobs: int) -> None:
    """Write `count` spoken sentences as `folder/split.npz`."""
    draw = Random(split)
    texts = [sentence(draw) for _ in range(count)]
    voices = [voice_of(split, draw) for _ in range(count)]
    seeds = [draw.getrandbits(32) for _ in range(count)]
    vary, vary_pitch = [split.startswith("train")] * count, [is_recorded(split)] * count
    with ThreadPoolExecutor(jobs) as pool:
        spoken = list(pool.map(speak, texts, voices, seeds, vary, vary_pitch))
    lengths = [len(samples) for samples in spoken]
    audio = np.concatenate(spoken)
    unfinished = folder / "unfinished.npz"
    np.savez(unfinished, audio=audio, lengths=lengths, text=texts, voice=voices)
    unfinished.rename(folder / f"{split}.npz")
    print(f"{split}: {count} sentences, {len(audio) / RATE / 3600:.2f} hours", flush=True)


def main() -> None:
    """Make what is held out, then training speech, part by part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write the .npz files")
    parser.add_argument("--parts", type=int, default=6, help=f"of {PART} training sentences each")
    parser.add_argument("--jobs", type=int, default=2, help="synthesisers at a time")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    training = {f"train-{part:03}": PART for part in range(given.parts)}
    for split, count in {"dev": 150, "voices": 250, "rms": 200, **training}.items():
        if not (given.folder / f"{split}.npz").exists():
            make(split, count, given.folder, given.jobs)


if __name__ == "__main__":
    main()
