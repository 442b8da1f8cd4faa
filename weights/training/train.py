"""Train the recogniser on what `make_speech.py` wrote, within a budget of minutes."""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from augmentation import augment, mask
from evaluate import load_speech, report, word_errors, words_of
from model import (
    DefaultFrontend,
    ESPnetASRTransducerModel,
    build,
    configuration,
    load,
    save,
    save_statistics,
)
from sentences import vocabulary
from torch.nn.functional import cross_entropy, ctc_loss, pad
from torch.nn.utils.rnn import pad_sequence
from transducer_loss import transducer_loss

BATCH = 1_500  # feature frames, 12 s
PEAK, WARM_UP = 1.2e-3, 100  # learning rate, and steps until it is reached
CTC_WEIGHT = 0.3
LESSON = 0.08  # share of the time in which phones are learned, and hardly anything else
SUBSAMPLING, DELAY = 4, 6  # feature frames to an encoder frame, and from a phone to its label


def pronunciations(words: list[str]) -> dict[str, list[tuple[str, float]]]:
    """Return each word's phones with their lengths in seconds, as flite's voice slt says them."""
    lexicon = {}
    for word in words:
        command = ["flite", "-voice", "slt", "-psdur", "-t", word, "-o", "none"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        segments = [segment.split(":") for segment in said.split()]
        ends = [float(end) for _, end in segments]
        lexicon[word] = [
            (phone, end - start)
            for (phone, _), start, end in zip(segments[1:], ends, ends[1:], strict=False)
            if phone != "pau"
        ]
    return lexicon


class Sentences:
    """Clean features with their words and phones as numbers.

    Parameters
    ----------
    folder : Path
        Where `make_speech.py` writes.
    pattern : str
        The names of the files. The first is read at once, one more by each call of `read`.
    """

    def __init__(self, folder: Path, pattern: str):
        words = vocabulary()
        lexicon = pronunciations(words)
        phones = sorted({phone for said in lexicon.values() for phone, _ in said})
        self.phones = len(phones) + 1  # with silence
        self._token = {word: number for number, word in enumerate(words, 2)}  # after <unk>
        self._phones = {
            word: [(phones.index(phone) + 1, seconds) for phone, seconds in said]
            for word, said in lexicon.items()
        }
        self._frontend = DefaultFrontend()
        self._folder, self._pattern, self._known = folder, pattern, set[Path]()
        self.features: list[torch.Tensor] = []
        self.texts: list[str] = []
        self.words: list[torch.Tensor] = []
        self.phones_said: list[torch.Tensor] = []
        self.phone_ends: list[torch.Tensor] = []
        self.read()

    def read(self, most: int | None = 1) -> None:
        """Read one more file, if there is one; or so many, or all."""
        for path in sorted(set(self._folder.glob(self._pattern)) - self._known)[:most]:
            self._known.add(path)
            audio, texts = load_speech(path)
            self.features += [_features(self._frontend, samples) for samples in audio]
            self.texts += texts
            for said in map(str.split, texts):
                phones = [phone for word in said for phone in self._phones[word]]
                self.words.append(torch.tensor([self._token[word] for word in said]))
                seconds = torch.tensor([length for _, length in phones])
                self.phones_said.append(torch.tensor([phone for phone, _ in phones]))
                self.phone_ends.append(seconds.cumsum(0) / seconds.sum())

    def alignment(
        self, batch: np.ndarray, starts: torch.Tensor, lengths: torch.Tensor, frames: int
    ) -> torch.Tensor:
        """Guess which phone the encoder hears in each of its frames, (B, T'); 0 is silence.

        The lengths of phones in words said alone are stretched to the sentence. That is wrong by a
        phone now and then, and good enough to begin with.
        """
        centres = SUBSAMPLING * torch.arange((frames - 3) // SUBSAMPLING) + 3 - DELAY
        labels = torch.zeros(len(batch), len(centres), dtype=torch.long)
        for row, number, start, length in zip(labels, batch, starts, lengths, strict=True):
            within = (centres >= start) & (centres < start + length)
            place = (centres[within] - start) / length
            phones, ends = self.phones_said[number], self.phone_ends[number]
            at = torch.searchsorted(ends, place, right=True).clamp_max(len(ends) - 1)
            row[within] = phones[at]
        return labels

    def batches(self, draw: np.random.Generator) -> Iterator[np.ndarray]:
        """Yield the numbers of sentences of similar length, each sentence once."""
        lengths = np.array([len(features) for features in self.features])
        order = np.argsort(lengths * draw.lognormal(0, 0.1, len(lengths)))
        fill = np.cumsum(lengths[order] + 60) // BATCH
        groups = np.split(order, np.flatnonzero(np.diff(fill)) + 1)
        yield from (groups[number] for number in draw.permutation(len(groups)))


def _features(frontend: DefaultFrontend, samples: np.ndarray) -> torch.Tensor:
    """Return log-mel features (T, F), stored as float16."""
    floats = torch.from_numpy(samples.astype(np.float32) / 32768)
    with torch.inference_mode():
        return frontend(floats[None], torch.tensor([len(samples)]))[0][0].half()


class Losses(torch.nn.Module):
    """The model, and a classifier of phones that is thrown away after training.

    Phones are shared by words and aligned from the start: they teach the encoder sooner than words.
    """

    def __init__(self, model: ESPnetASRTransducerModel, phones: int):
        super().__init__()
        self.model = model
        model.encoder.embed.conv.to(memory_format=torch.channels_last)  # twice as fast
        self.phones = torch.nn.Linear(model.encoder.output_size, phones)

    def forward(
        self, features: torch.Tensor, words: list[torch.Tensor], phones: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the losses of the transducer and of CTC per word, and of phones per frame."""
        lengths = torch.full((len(features),), features.shape[1])
        encoded, _ = self.model.encoder(features, lengths)
        frames = torch.full((len(features),), encoded.shape[1])
        labels = pad_sequence(words, batch_first=True)
        counts = torch.tensor([len(said) for said in words])
        context = self.model.decoder(pad(labels, (1, 0)))
        scores = self.model.joint_network(encoded[:, :, None], context[:, None])
        transducer = transducer_loss(scores, labels, frames, counts).sum() / counts.sum()
        by_word = self.model.ctc_lin(encoded).log_softmax(-1).transpose(0, 1)
        by_word = ctc_loss(by_word, labels, frames, counts, zero_infinity=True)
        return transducer, by_word, cross_entropy(self.phones(encoded).transpose(1, 2), phones)


@torch.inference_mode()
def development(
    model: ESPnetASRTransducerModel, sentences: Sentences
) -> tuple[float, dict[str, torch.Tensor]]:
    """Transcribe the development set with full context, and calibrate the blank.

    A transducer that was trained for a short time leaves out words: blank's bias is lowered by what
    makes the fewest errors.

    Returns
    -------
    rate : float
        The word error rate in percent.
    state : dict of torch.Tensor
        The weights, with the calibrated bias.
    """
    model.eval()
    model.encoder.dynamic_chunk_training = False
    encoded = []
    for features in sentences.features:
        quiet = pad(features.float(), (0, 0, 20, 30), value=-14.0)
        normalised, lengths = model.normalize(quiet[None], torch.tensor([len(quiet)]))
        encoded.append(model.encoder(normalised, lengths)[0][0])
    model.encoder.dynamic_chunk_training = True
    state = {key: value.clone() for key, value in model.state_dict().items()}
    bias = model.joint_network.lin_out.bias
    tried = []
    for lowered in [0, 0.5, 1, 1.5, 2, 2.5]:
        bias[0] = state["joint_network.lin_out.bias"][0] - lowered
        heard = [" ".join(words_of(model, frames)) for frames in encoded]
        tried.append((sum(map(word_errors, sentences.texts, heard)), lowered, heard))
    bias.copy_(state["joint_network.lin_out.bias"])
    wrong, lowered, heard = min(tried)
    state["joint_network.lin_out.bias"][0] -= lowered
    print(report(f"  development, blank lowered by {lowered}", sentences.texts, heard), flush=True)
    return 100 * wrong / sum(len(text.split()) for text in sentences.texts), state


class Trainer:
    """Steps of AdamW with a learning rate that falls to zero when the time is over.

    The weights that are kept are the running mean of those of the latest thousand steps.
    """

    def __init__(self, losses: Losses, minutes: float, lesson: float):
        self.losses, self.seconds, self.start = losses, 60 * minutes, time.monotonic()
        self.steps, self.lesson = 0, lesson
        self.optimiser = torch.optim.AdamW(losses.parameters(), weight_decay=0.02, fused=True)
        self.mean = torch.optim.swa_utils.AveragedModel(losses.model, multi_avg_fn=self._average)

    def elapsed(self) -> float:
        """Return the share of the time that has gone."""
        return (time.monotonic() - self.start) / self.seconds

    def step(
        self, features: torch.Tensor, words: list[torch.Tensor], phones: torch.Tensor
    ) -> tuple[float, float, float]:
        """Learn from a batch; return the three losses."""
        rate = PEAK * min(1, (self.steps + 1) / WARM_UP)
        rate *= 0.5 + 0.5 * math.cos(math.pi * min(1, self.elapsed()))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.losses.train()
        transducer, by_word, by_phone = self.losses(features, words, phones)
        self.optimiser.zero_grad()
        loss = (transducer + CTC_WEIGHT * by_word) * (1 if self.elapsed() > self.lesson else 0.02)
        (loss + max(0.2, 1 - self.elapsed()) * by_phone).backward()
        torch.nn.utils.clip_grad_norm_(self.losses.parameters(), 5.0)
        self.optimiser.step()
        self.steps += 1
        self.mean.update_parameters(self.losses.model)
        return transducer.item(), by_word.item(), by_phone.item()

    @torch.no_grad()
    def _average(
        self, means: list[torch.Tensor], latest: list[torch.Tensor], _: torch.Tensor
    ) -> None:
        torch._foreach_lerp_(means, latest, max(0.001, 1 / (0.1 * self.steps + 1)))


def main() -> None:
    """Train, printing losses and the development set's word error rate; keep the best."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("speech", type=Path, help="the folder that make_speech.py wrote")
    parser.add_argument("model", type=Path, help="what to write, without .pth and .yaml")
    parser.add_argument("--start", type=Path, help="a model to train further, all files at once")
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--every", type=float, default=5, help="minutes between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(given.seed)
    draw = np.random.default_rng(given.seed)
    training, held_out = Sentences(given.speech, "train-*.npz"), Sentences(given.speech, "dev.npz")
    statistics = given.model.with_name(f"{given.model.name}-feats_stats.npz")
    if given.start:
        training.read(None)
        shutil.copy(given.start.with_name(f"{given.start.name}-feats_stats.npz"), statistics)
    else:
        sample = [
            augment([training.features[n] for n in batch], draw)[0]
            for batch, _ in zip(training.batches(draw), range(20), strict=False)
        ]
        save_statistics(torch.cat([features.flatten(0, 1) for features in sample]), statistics)
    fields = configuration(vocabulary(), str(statistics))
    model, lesson = build(fields), LESSON
    if given.start:
        model.load_state_dict(load(given.start).state_dict())
        lesson = 0
    trainer = Trainer(Losses(model, training.phones), given.minutes, lesson)
    fields["normalize_conf"]["stats_file"] = statistics.name
    best, due, means = math.inf, given.every, [0.0, 0.0, 0.0]
    while trainer.elapsed() < 1:
        for batch in training.batches(draw):
            features, *where = augment([training.features[n] for n in batch], draw)
            normalised, _ = trainer.losses.model.normalize(features)
            latest = trainer.step(
                mask(normalised, draw),
                [training.words[n] for n in batch],
                training.alignment(batch, *where, features.shape[1]),
            )
            means = [0.98 * mean + 0.02 * loss for mean, loss in zip(means, latest, strict=True)]
            minutes = trainer.elapsed() * given.minutes
            if trainer.steps % 100 == 0:
                print(
                    f"{minutes:6.1f} min, step {trainer.steps}, {len(training.texts)} sentences:",
                    *map("{:.3f}".format, means),
                )
            if minutes > due or trainer.elapsed() >= 1:
                due += given.every
                rate, state = development(trainer.mean.module, held_out)
                if rate <= best:
                    best = rate
                    save(state, fields, given.model)
            if trainer.elapsed() >= 1:
                break
        training.read()


if __name__ == "__main__":
    main()
