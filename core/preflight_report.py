"""From a preflight's counts to what people read: quartiles, a histogram, what a cut costs, and advice."""

from collections import Counter
from typing import Any, Literal

from core.preflight import Profile
from core.resolve import sequence_length

_MOST_BINS = 24


def quantile(lengths: Counter[int], share: float) -> int:
    """The value below which ``share`` of the samples lie, as the worker takes it: of n sorted, number share * (n-1)."""
    rank, seen = int(share * (lengths.total() - 1)), 0
    for value in sorted(lengths):
        seen += lengths[value]
        if seen > rank:
            return value
    return 0


def make_report(
    found: dict[str, Any], *, asked: int | Literal["auto"], context_length: int | None, note: str | None
) -> dict[str, Any]:
    """The report on what ``core.preflight.examine`` found, for a cut at ``asked`` tokens."""
    profile = Profile.from_json(found["profile"])
    is_tokens = found["unit"] == "tokens" and found["samples"] > 0
    cut = trained = None
    if is_tokens:
        length, reason = chosen_length(profile, asked, context_length)
        cut = cut_report(profile, length, reason)
        trained = _trained(profile, length)
    report = {
        "file_format": found["file_format"],
        "format": found["format"],
        "samples": found["samples"],
        "characters": found["characters"],
        "problems": found["problems"],
        "lengths": _lengths(profile.lengths, found),
        "cut": cut,
        "trained": trained,
        "duplicates": found["duplicates"],
        "overlap": found["overlap"],
        "note": note,
    }
    return {**report, "advice": _advice(report, profile)}


def chosen_length(profile: Profile, asked: int | Literal["auto"], context_length: int | None) -> tuple[int, str]:
    """Where samples are cut, and why."""
    if asked != "auto":
        return asked, "as asked"
    p90 = quantile(profile.lengths, 0.9)
    return sequence_length(p90, max(profile.lengths), context_length or max(profile.lengths))


def _lengths(lengths: Counter[int], found: dict[str, Any]) -> dict[str, Any]:
    total = sum(value * count for value, count in lengths.items())
    return {
        "unit": found["unit"],
        "mean": round(total / max(1, lengths.total()), 1),
        "shortest": min(lengths, default=0),
        "quartile_1": quantile(lengths, 0.25),
        "median": quantile(lengths, 0.5),
        "quartile_3": quantile(lengths, 0.75),
        "percentile_90": quantile(lengths, 0.9),
        "longest": max(lengths, default=0),
        "total": total,
        "histogram": histogram(lengths),
        "longest_samples": found["longest"],
    }


def histogram(lengths: Counter[int]) -> dict[str, list[int]]:
    """At most 24 bins of one round width that hold 98 % of the samples, and one more for what is longer."""
    longest = max(lengths, default=0)
    upper = quantile(lengths, 0.98)
    width = next(size for size in _widths() if upper // size < _MOST_BINS)
    bins = upper // width + 1
    counts = [0] * bins
    beyond = 0
    for value, count in lengths.items():
        if value // width < bins:
            counts[value // width] += count
        else:
            beyond += count
    edges = [width * place for place in range(bins + 1)]
    if beyond:
        return {"edges": [*edges, longest + 1], "counts": [*counts, beyond]}
    return {"edges": edges, "counts": counts}


def _widths() -> Any:
    """1, 2, 4, 8, …: widths that fit how lengths are chosen."""
    width = 1
    while True:
        yield width
        width *= 2


def _beyond(counts: Counter[int], limit: int) -> int:
    return sum(count for value, count in counts.items() if value >= limit)


def _within(counts: Counter[int], limit: int) -> int:
    return sum(min(value, limit) * count for value, count in counts.items())


def cut_report(profile: Profile, length: int, reason: str) -> dict[str, Any]:
    """What is lost when every sample is cut at ``length`` tokens."""
    samples = profile.lengths.total()
    total = sum(value * count for value, count in profile.lengths.items())
    cut_samples, tokens = _beyond(profile.lengths, length + 1), total - _within(profile.lengths, length)
    return {
        "max_seq_length": length,
        "reason": reason,
        "samples": cut_samples,
        "share_of_samples": round(cut_samples / samples, 4),
        "tokens": tokens,
        "share_of_tokens": round(tokens / max(1, total), 4),
        "end_token_lost": _beyond(profile.lasts, length),
        "nothing_trained": _beyond(profile.firsts, length) + samples - profile.firsts.total(),
    }


def _trained(profile: Profile, length: int) -> dict[str, Any]:
    of = _within(profile.lengths, length)
    tokens = trained_tokens(profile, length)
    return {"tokens": tokens, "of": of, "share": round(tokens / max(1, of), 4)}


def trained_tokens(profile: Profile, length: int) -> int:
    """Trained tokens within the first ``length`` of each sample."""
    return _within(profile.ends, length) - _within(profile.starts, length)


def _advice(report: dict[str, Any], profile: Profile) -> list[str]:
    """What to do about what was found, the weightiest first."""
    advice, samples = [], report["samples"]
    if count := report["problems"]["count"]:
        advice.append(f"{count:,} {_word('line', count)} can't be used: mend them, or a job will be refused.")
    if not samples:
        return [*advice, "The file has no usable sample."]
    if (cut := report["cut"]) is not None and cut["samples"]:
        advice.append(_cut_advice(cut, profile, samples))
        if cut["nothing_trained"]:
            advice.append(
                f"{cut['nothing_trained']:,} {_word('sample', cut['nothing_trained'])} would be dropped: their prompt "
                f"alone fills {cut['max_seq_length']:,} tokens."
            )
    if (trained := report["trained"]) is not None and trained["share"] < 0.1:
        advice.append(
            f"Only {trained['share']:.1%} of the tokens are trained; the prompts are long beside the answers. "
            "That is slow, not wrong."
        )
    if same := report["duplicates"]["count"]:
        advice.append(f"{same:,} {_word('sample', same)} stand there a second time. Remove them unless that is meant.")
    if (overlap := report["overlap"]) is not None and (overlap["count"] or overlap["prompts"]):
        advice.append(
            f"{overlap['count']:,} training samples are in the validation file as well, {overlap['prompts']:,} share "
            "a prompt with it: the validation loss will look better than it is."
        )
    if samples < 50:
        advice.append(f"{samples} samples are few. Below 50, a model mostly learns the form of the answers.")
    return advice


def _cut_advice(cut: dict[str, Any], profile: Profile, samples: int) -> str:
    told = (
        f"{cut['samples']:,} of {samples:,} samples ({cut['share_of_samples']:.1%}) are longer than "
        f"{cut['max_seq_length']:,} tokens; {cut['end_token_lost']:,} lose their end, and with it what teaches the "
        "model to stop."
    )
    larger = cut["max_seq_length"] * 2
    still = _beyond(profile.lengths, larger + 1)
    return f"{told} hone.data.max_seq_length: {larger} would cut {still:,}."


def _word(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"
