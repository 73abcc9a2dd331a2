"""The queue's decisions, without threads, clocks or HTTP: what shares a batch, whose step is next, what is left."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from pixelcascade.serve.queue import FullError, Job, Queue, StageRule

STAGES = {"base": StageRule(4), "sr": StageRule(2)}


def queue(rules=None, **options) -> Queue:
    return Queue(rules or STAGES, **({"gather_s": 0.0} | options))


def job(name, count=1, key="k", stages=("base",), fit="f", came=0.0, until=None) -> Job:
    return Job(name, key, count, stages, tuple(fit for _ in stages), came, until)


def rows(batch) -> list[str]:
    return [place.job.id for place in batch.places]


def step(queue, seconds=1.0, steps=1, lane="here"):
    """One step of the batch that is next; the stage is done after so many. The stage's name."""
    batch = queue.next(lane, 0.0)
    if batch.steps == steps:
        queue.finished(batch, 0.0)
        return batch.stage + " done"
    queue.stepped(batch, seconds)
    return batch.stage


def test_images_that_fit_share_a_batch_and_others_wait():
    q = queue()
    for name, fit in (("a", 1), ("b", 2), ("c", 1)):
        q.add(job(name, fit=fit))
    first = q.next("here", 0.0)
    assert rows(first) == ["a", "c"]
    q.stepped(first, 1.0)
    assert q.next("here", 0.0) is first  # one batch of a stage at a time
    q.finished(first, 0.0)
    assert rows(q.next("here", 0.0)) == ["b"]


def test_a_batch_is_as_large_as_memory_allows_and_no_larger():
    q = queue()
    q.add(job("a", 6))
    first = q.next("here", 0.0)
    assert len(first.places) == 4
    assert q.finished(first, 0.0) == []
    second = q.next("here", 0.0)
    assert [place.row for place in second.places] == [4, 5]
    assert [done.id for done in q.finished(second, 0.0)] == ["a"] and q.load == 0


def test_images_join_between_stages():
    q = queue()
    q.add(job("a", stages=("base", "sr")))
    batch = q.next("here", 0.0)
    q.add(job("b", stages=("base", "sr")))
    q.finished(batch, 0.0)
    assert q.waiting() == {"base": 1, "sr": 1}
    while q.waiting()["base"] or q.running["base"]:
        step(q)
    assert q.load > 0


def test_the_queue_is_bounded_in_images_times_stages_and_says_when_to_come_again():
    q = queue(most=6)
    q.add(job("a", 2, stages=("base", "sr")))
    assert q.load == 4
    with pytest.raises(FullError) as full:
        q.add(job("b", 2, stages=("base", "sr")))
    assert 1 <= full.value.retry_after_s <= 120
    with pytest.raises(ValueError, match="more than the queue holds"):
        q.add(job("c", 7))
    q.add(job("d", 2))
    assert q.load == 6
    q.end(q.jobs["a"])
    assert q.load == 2 and q.waiting() == {"base": 2, "sr": 0}


def test_what_is_cancelled_leaves_between_stages_and_alone_at_once():
    q = queue()
    a, b = job("a", stages=("base", "sr")), job("b", stages=("base", "sr"))
    q.add(a), q.add(b)
    batch = q.next("here", 0.0)
    q.stepped(batch, 1.0)
    q.end(a)
    assert batch.wanted and rows(batch) == ["a", "b"]  # a row is not taken out of a running batch
    q.finished(q.next("here", 0.0), 0.0)
    after = q.next("here", 0.0)
    assert after.stage == "sr" and rows(after) == ["b"]
    q.end(b)
    assert not after.wanted
    q.dropped(after)
    assert q.next("here", 0.0) is None and q.load == 0


def test_keys_take_turns_whatever_each_has_asked_for():
    q = queue({"base": StageRule(2)}, most=100)
    for index in range(10):
        q.add(job(f"greedy{index}", key="greedy", came=float(index)))
    first = q.next("here", 0.0)
    assert rows(first) == ["greedy0", "greedy1"]
    q.add(job("modest", key="modest", came=11.0))
    q.finished(first, 1.0)
    assert "modest" in rows(q.next("here", 0.0))


def test_a_key_does_not_save_up_turns_while_it_is_away():
    q = queue({"base": StageRule(1)}, most=100)
    for index in range(6):
        q.add(job(f"a{index}", key="a"))
    for _ in range(3):
        q.finished(q.next("here", 0.0), 1.0)
    for index in range(3):
        q.add(job(f"b{index}", key="b", came=1.0))
    order = []
    while (batch := q.next("here", 0.0)) is not None:
        order += rows(batch)
        q.finished(batch, 1.0)
    assert {name[0] for name in order[:2]} == {"a", "b"} and {name[0] for name in order[2:4]} == {"a", "b"}


def test_a_slow_stage_does_not_starve_a_quick_one():
    """Steps of 10 s at sr and of 1 s at base: both get the same time, so base gets ten steps to one."""
    q = queue()
    q.add(job("large", stages=("sr",)))
    batch = q.next("here", 0.0)
    q.stepped(batch, 10.0)
    q.add(job("small"))
    done = []
    for _ in range(8):
        batch = q.next("here", 0.0)
        done.append(batch.stage)
        q.stepped(batch, 10.0 if batch.stage == "sr" else 1.0)
    assert done.count("base") >= 6 and "sr" in done


def test_a_stage_does_not_save_up_time_while_it_is_idle():
    q = queue()
    q.add(job("a"))
    for _ in range(50):
        q.stepped(q.next("here", 0.0), 1.0)
    q.add(job("b", stages=("sr",)))
    seen = []
    for _ in range(6):
        batch = q.next("here", 0.0)
        seen.append(batch.stage)
        q.stepped(batch, 1.0)
    assert 2 <= seen.count("base") <= 4


def test_lanes_work_side_by_side_and_replicas_as_well():
    rules = {"base": StageRule(1), "far": StageRule(1, "far", 2)}
    q = queue(rules)
    q.add(job("a")), q.add(job("b", 3, stages=("far",)))
    assert q.next("here", 0.0).stage == "base" and q.next("here", 0.0) is None  # it is busy
    first, second = q.next("far", 0.0), q.next("far", 0.0)
    assert first is not second and q.next("far", 0.0) is None
    q.finished(first, 1.0)
    assert q.next("far", 0.0).places[0].row == 2


def test_too_little_memory_halves_the_batches_and_loses_nobody():
    q = queue()
    q.add(job("a", 4))
    batch = q.next("here", 0.0)
    assert q.halved(batch)
    again = q.next("here", 0.0)
    assert [place.row for place in again.places] == [0, 1]
    q.finished(again, 1.0)
    assert q.halved(q.next("here", 0.0))
    one = q.next("here", 0.0)
    assert len(one.places) == 1 and not q.halved(one)
    assert [failed.id for failed in q.failed(one)] == ["a"] and q.load == 0


def test_late_jobs_are_told():
    q = queue()
    q.add(job("a", until=5.0)), q.add(job("b"))
    assert q.late(4.9) == [] and [late.id for late in q.late(5.0)] == ["a"]


def test_after_a_batch_of_several_the_next_one_waits_a_moment_for_as_many():
    q = queue(gather_s=0.1)
    q.add(job("a", 3))
    q.finished(q.next("here", 0.0), 1.0)
    q.add(job("b", came=1.0))
    assert q.next("here", 1.05) is None
    q.add(job("c", 2, came=1.06))
    assert len(q.next("here", 1.06).places) == 3
    alone = queue(gather_s=0.1)
    alone.add(job("a"))
    assert alone.next("here", 0.0) is not None
    many = queue(gather_s=0.1)
    many.add(job("a", 3))
    many.finished(many.next("here", 0.0), 1.0)
    many.add(job("b", came=1.0))
    assert many.next("here", 1.2) is not None


@given(
    some.lists(
        some.tuples(
            some.sampled_from(["add", "add", "step", "step", "step", "cancel", "fail", "short"]),
            some.integers(1, 3),
            some.integers(0, 2),
        ),
        max_size=40,
    )
)
def test_whatever_happens_nothing_is_lost_and_nothing_is_left(events):
    """Every accepted job ends once, no batch exceeds its stage's cap or mixes what does not fit, and it ends empty."""
    q, jobs, ended = queue(most=30), [], []

    def work(kind: str) -> bool:
        batch = q.next("here", 0.0)
        if batch is None:
            return False
        assert len(batch.places) <= STAGES[batch.stage].most
        assert len({place.job.fits for place in batch.places}) <= len(batch.places)
        assert len({place.job.fits[place.job.stages.index(batch.stage)] for place in batch.places}) == 1
        if not batch.wanted:
            q.dropped(batch)
        elif kind == "fail":
            ended.extend(q.failed(batch))
        elif kind == "short" and q.halved(batch):
            pass
        elif batch.steps == 2:
            ended.extend(q.finished(batch, 1.0))
        else:
            q.stepped(batch, 1.0)
        return True

    for index, (kind, count, which) in enumerate(events):
        if kind == "add":
            stages = (("base",), ("base", "sr"), ("sr",))[which]
            new = job(str(index), count, key=f"k{which}", stages=stages, fit=which % 2)
            try:
                q.add(new)
                jobs.append(new)
            except FullError:
                assert q.load + new.left > q.most
        elif kind == "cancel" and q.jobs:
            gone = list(q.jobs.values())[which % len(q.jobs)]
            q.end(gone)
            ended.append(gone)
        else:
            work(kind)
        assert q.load == sum(each.left for each in q.jobs.values()) <= q.most
    for _ in range(1000):
        if not work("step"):
            break
    assert q.load == 0 and not q.jobs and not any(q.waiting().values()) and not any(q.running.values())
    assert sorted(each.id for each in ended) == sorted(each.id for each in jobs)
    assert not q._served
