"""Loops in a trace: what the same code ran again and again, on its own last output, is one node with its turns."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from dgm_tb.callback.trace import Trace

Group = list[str]
"""The nodes that one place in the code ran, in order."""


def folded(trace: Trace) -> Trace:
    """The trace with every loop shown once: the nodes of its first turn, which tell how often they ran.

    A loop is code that ran several times, with nothing in between that ran only once, and of whose modules at least
    one depends on its own last call. A discriminator called for real and then for generated images is none.
    """
    rank = {name: number for number, name in enumerate(trace.nodes)}
    nodes, first_of = dict(trace.nodes), {name: name for name in trace.nodes}
    for loop in _loops(trace):
        if _is_carried(trace, loop, rank):
            for first, *others in loop:
                repeats = sum(nodes[name].repeats for name in (first, *others))
                nodes[first] = replace(nodes[first], repeats=repeats)
                first_of.update(dict.fromkeys(others, first))
    inputs_of: dict[str, list[str]] = {}
    for name, parents in trace.inputs_of.items():
        first = first_of[name]
        known = inputs_of.setdefault(first, [])
        of_first_turn = name == first
        for parent in (first_of[parent] for parent in parents):
            if rank[parent] < rank[first] and (of_first_turn or parent not in known):
                known.append(parent)
    return Trace({name: nodes[name] for name in inputs_of}, inputs_of, trace.sites, trace.outputs, trace.axes)


def _loops(trace: Trace) -> Iterator[list[Group]]:
    """Code that ran several times: groups of nodes that took turns."""
    names = [name for name in trace.nodes if name in trace.sites]
    for part in _repeating(names, trace.sites):
        groups: dict[int, Group] = {}
        last: dict[int, int] = {}
        for position, name in enumerate(part):
            groups.setdefault(trace.sites[name], []).append(name)
            last[trace.sites[name]] = position
        loop: list[Group] = []
        end = -1
        for position, name in enumerate(part):
            if loop and position > end:
                yield loop
                loop = []
            if groups[trace.sites[name]][0] == name:
                loop.append(groups[trace.sites[name]])
                end = max(end, last[trace.sites[name]])
        yield loop


def _repeating(names: list[str], sites: dict[str, int]) -> Iterator[list[str]]:
    """The longest parts of ``names`` in which every site occurs at least twice."""
    waiting = [names]
    while waiting:
        part = waiting.pop()
        counts = Counter(sites[name] for name in part)
        cuts = [position for position, name in enumerate(part) if counts[sites[name]] == 1]
        if part and not cuts:
            yield part
        elif len(cuts) < len(part):
            bounds = [-1, *cuts, len(part)]
            waiting.extend(part[low + 1 : high] for low, high in pairwise(bounds) if high - low > 2)


def _is_carried(trace: Trace, loop: list[Group], rank: dict[str, int]) -> bool:
    """Whether a module of the loop (a function, if there are no modules) takes part in making its own next input."""
    modules = [group for group in loop if trace.nodes[group[0]].layer]
    return any(
        all(is_upstream(trace.inputs_of, rank, one, following) for one, following in pairwise(group))
        for group in modules or loop
    )


def is_upstream(inputs_of: dict[str, list[str]], rank: dict[str, int], source: str, target: str) -> bool:
    """Whether something of ``source`` flows into ``target``.

    Args:
        inputs_of: Node id -> ids of its parents.
        rank: Node id -> its place in the order the nodes ran.
        source: A node.
        target: A later node.
    """
    seen, waiting = {target}, [target]
    while waiting:
        for parent in inputs_of[waiting.pop()]:
            if parent == source:
                return True
            if parent not in seen and rank[parent] > rank[source]:
                seen.add(parent)
                waiting.append(parent)
    return False
