"""The divergence from a teacher, tile by tile, against the plain matrices."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from test_logprobs import Largest

from agentrl.learner.divergence import divergence
from agentrl.learner.logprobs import Head
from agentrl.learner.projection import Projection
from agentrl.learner.top_tokens import TopTokens, bucketed, chosen_logprobs, top_tokens

POSITIONS, STUDENT_SIZE, TEACHER_SIZE, WORDS = 7, 5, 9, 50
BETAS = (0.0, 0.3, 0.5, 1.0)
EVERY_HEAD = (
    {},
    {"temperature": 0.7},
    {"temperature": 1.3, "scale": 0.5, "softcap": 4.0},
)


def projection(
    size: int, *, words: int = WORDS, seed: int = 0, grad: bool = False, bias: bool = True, tile_mib: float = 1e-6, **head: float
):
    """Random hidden states and head in float64; the default tile is the least, 16 words."""
    draw = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((POSITIONS, size), (words, size), (words,))]
    for one in made:
        one.requires_grad_(grad)
    return Projection(hidden=made[0], weight=made[1], bias=made[2] if bias else None, head=Head(tile_mib=tile_mib, **head))


def dense(one: Projection, words: int = WORDS) -> torch.Tensor:
    """[positions, words] log-probs, by the definition."""
    logits = one.hidden @ one.weight[:words].t() + (0.0 if one.bias is None else one.bias[:words])
    logits = logits * one.head.scale
    if one.head.softcap is not None:
        logits = one.head.softcap * torch.tanh(logits / one.head.softcap)
    return torch.log_softmax(logits / one.head.temperature, -1)


def kl(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first.exp() * (first - second)).sum(-1)


def written_out(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """arXiv:2306.13649, eq. 1, and its limits."""
    if beta == 0:
        return kl(teacher, student)
    if beta == 1:
        return kl(student, teacher)
    mixture = torch.log((1 - beta) * student.exp() + beta * teacher.exp())
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


def leaves(one: Projection) -> list[torch.Tensor]:
    return [leaf for leaf in (one.hidden, one.weight, one.bias) if leaf is not None]


def assert_same(found: torch.Tensor, expected: torch.Tensor, student: Projection) -> None:
    """Values and, weighted unevenly, gradients."""
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    weights = torch.linspace(-1, 2, found.numel(), dtype=found.dtype).reshape(found.shape)
    ours = torch.autograd.grad((found * weights).sum(), leaves(student))
    right = torch.autograd.grad((expected * weights).sum(), leaves(student))
    for one, other in zip(ours, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("tile_mib", [1e-6, 1.0])
@pytest.mark.parametrize("head", EVERY_HEAD)
@pytest.mark.parametrize("beta", BETAS)
def test_values_and_gradients_are_those_of_the_whole_matrices(beta, head, tile_mib):
    head = head | {"tile_mib": tile_mib}
    student, teacher = projection(STUDENT_SIZE, grad=True, **head), projection(TEACHER_SIZE, seed=1, bias=False, **head)

    assert_same(divergence(student, teacher, beta=beta), written_out(dense(student), dense(teacher), beta), student)


@pytest.mark.parametrize("beta", BETAS)
def test_tiles_of_any_width_say_the_same(beta):
    found = []
    for tile_mib in (1e-6, 1.0):
        student, teacher = projection(STUDENT_SIZE, grad=True, tile_mib=tile_mib), projection(TEACHER_SIZE, seed=1, tile_mib=tile_mib)
        value = divergence(student, teacher, beta=beta)
        found.append([value, *torch.autograd.grad(value.sum(), leaves(student))])

    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_a_padded_head_counts_for_the_words_that_both_have(beta):
    student, teacher = projection(STUDENT_SIZE, words=WORDS + 14, grad=True), projection(TEACHER_SIZE, words=WORDS, seed=1)

    found = divergence(student, teacher, beta=beta)

    assert_same(found, written_out(dense(student, WORDS), dense(teacher, WORDS), beta), student)


@pytest.mark.parametrize("beta", BETAS)
def test_a_student_that_is_its_teacher_is_at_rest(beta):
    student = projection(STUDENT_SIZE, grad=True)
    value = divergence(
        student,
        Projection(hidden=student.hidden.detach(), weight=student.weight.detach(), bias=student.bias.detach(), head=student.head),
        beta=beta,
    )

    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-12)
    for grad in torch.autograd.grad(value.sum(), leaves(student)):
        assert float(grad.abs().max()) < 1e-12


def test_the_teacher_gets_no_gradient():
    student, teacher = projection(STUDENT_SIZE, grad=True), projection(TEACHER_SIZE, seed=1, grad=True)

    grads = torch.autograd.grad(divergence(student, teacher, beta=0.5).sum(), leaves(teacher), allow_unused=True)

    assert grads == (None, None, None)


def test_distributions_far_apart_stay_finite_in_float32():
    student, teacher = projection(STUDENT_SIZE), projection(TEACHER_SIZE, seed=1)
    student = Projection(hidden=(student.hidden * 60).float().requires_grad_(), weight=student.weight.float(), bias=None, head=Head())
    teacher = Projection(hidden=(teacher.hidden * 60).float(), weight=teacher.weight.float(), bias=None, head=Head())
    for beta in BETAS:
        for tile_mib in (1e-6, 1.0):
            own, other = (dataclasses.replace(one, head=Head(tile_mib=tile_mib)) for one in (student, teacher))
            value = divergence(own, other, beta=beta)
            (grad,) = torch.autograd.grad(value.sum(), [student.hidden])

            assert torch.isfinite(value).all()
            assert torch.isfinite(grad).all()
            assert float(value.detach().min()) > -1e-5


def test_chosen_logprobs_are_those_of_the_whole_matrix():
    student = projection(STUDENT_SIZE, grad=True, temperature=1.3, softcap=4.0)
    ids = torch.randint(0, WORDS, (POSITIONS, 4), generator=torch.Generator().manual_seed(3))

    assert_same(chosen_logprobs(student, ids), dense(student).gather(1, ids), student)


def test_top_tokens_are_the_most_likely_ones_over_all_tiles():
    teacher = projection(TEACHER_SIZE, seed=1, temperature=0.7)

    found = top_tokens(teacher, 20)  # more than one tile of 16 has

    logprobs, ids = dense(teacher).topk(20)
    assert torch.equal(found.ids, ids)
    torch.testing.assert_close(found.logprobs, logprobs)


def test_top_tokens_of_a_small_vocabulary_are_all_of_it():
    assert sorted(top_tokens(projection(TEACHER_SIZE), 1000).ids[0].tolist()) == list(range(WORDS))


@pytest.mark.parametrize("beta", BETAS)
def test_top_tokens_and_a_tail_are_a_divergence_of_buckets(beta):
    student, teacher = projection(STUDENT_SIZE, grad=True), projection(TEACHER_SIZE, seed=1)
    top = top_tokens(teacher, 5)

    found = divergence(student, top, beta=beta)

    own, other = dense(student), dense(teacher)
    rest = torch.ones_like(own, dtype=torch.bool).scatter(1, top.ids, False)
    buckets = [torch.cat([one.gather(1, top.ids), (one.exp() * rest).sum(1, keepdim=True).log()], 1) for one in (own, other)]
    assert_same(found, written_out(*buckets, beta), student)
    assert (found <= divergence(student, teacher, beta=beta) + 1e-12).all()  # merging buckets loses information


def test_a_token_that_is_not_there_is_in_the_tail():
    student, teacher = torch.log(torch.tensor([[0.5, 0.2, 0.1]])), torch.log(torch.tensor([[0.4, 0.3, 0.0]]))

    value = bucketed(student, teacher, beta=0.0)

    assert value.item() == pytest.approx(0.4 * math.log(0.4 / 0.5) + 0.3 * math.log(0.3 / 0.2))  # the tails are 0.3 and 0.3


def test_a_token_with_all_the_mass_leaves_a_finite_tail():
    student = torch.tensor([[0.0]], requires_grad=True)
    for beta in BETAS:
        value = bucketed(student, torch.tensor([[-0.5]]), beta=beta)
        (grad,) = torch.autograd.grad(value.sum(), [student])
        assert torch.isfinite(value).all()
        assert torch.isfinite(grad).all()


def test_half_precision_products_give_float32_values():
    student, teacher = projection(STUDENT_SIZE), projection(TEACHER_SIZE, seed=1)
    half = [Projection(hidden=one.hidden.bfloat16(), weight=one.weight.bfloat16(), bias=None, head=one.head) for one in (student, teacher)]
    half[0].hidden.requires_grad_()

    value = divergence(
        half[0], TopTokens(ids=torch.zeros(POSITIONS, 1, dtype=torch.int64), logprobs=torch.full((POSITIONS, 1), -1.0)), beta=1.0
    )
    whole = divergence(*half, beta=1.0)

    assert value.dtype == whole.dtype == torch.float32
    assert torch.autograd.grad(whole.sum(), [half[0].hidden])[0].dtype == torch.bfloat16


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("top_k", [None, 4])
def test_no_tensor_is_larger_than_a_tile_or_the_gradient(beta, top_k):
    positions, words = 300, 4000
    draw = torch.Generator().manual_seed(0)
    hidden, weight, theirs, other = (
        torch.randn(*shape, generator=draw) for shape in ((positions, 4), (words, 4), (positions, 5), (words, 5))
    )
    head = Head(tile_mib=0.1)
    student = Projection(hidden=hidden.requires_grad_(), weight=weight.requires_grad_(), bias=None, head=head)
    teacher = Projection(hidden=theirs, weight=other, bias=None, head=head)

    with Largest(weight, other) as largest:
        divergence(student, teacher if top_k is None else top_tokens(teacher, top_k), beta=beta).sum().backward()

    tile = 2 * 0.1 * 2**20 / 4  # of top tokens also the 8-byte places
    assert largest.elements <= max(tile, weight.numel()) < positions * words / 10


def test_a_frozen_head_gets_no_gradient_and_no_memory_for_one():
    student = projection(STUDENT_SIZE, words=4000)
    student.hidden.requires_grad_()
    teacher = projection(TEACHER_SIZE, words=4000, seed=1)
    with Largest(student.weight, student.bias, teacher.weight, teacher.bias) as largest:
        divergence(student, teacher, beta=0.5).sum().backward()

    assert student.weight.grad is None
    assert student.hidden.grad is not None
    assert largest.elements < student.weight.numel()
