"""engine.compile: the same student, compiled once, and what is said where it cannot be."""

import copy
import shutil

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from clients.node import Node
from fedkd import seeding
from fedkd.compiling import compile_student
from fedkd.errors import ConfigError
from fedkd.models import states
from fedkd.models.student import Student

COMPILED = {"compile": True}
SUPERVISED = {"objective": {"name": "supervised"}}


class Backbone(nn.Module):
    """One convolution with BatchNorm, 6 features."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x))).mean((2, 3))


def small():
    with seeding.isolated(0, "compiled"):
        return Student(Backbone(), 6, 4)


def with_backend(monkeypatch, backend):
    """Everything of torch.compile but its compiler: fast, and the bits of no compilation."""
    torch._dynamo.reset()
    whole = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: whole(self, backend=backend))


@pytest.mark.slow
def test_a_compiled_run_has_the_same_students_and_names(run, monkeypatch, tmp_path):
    graphs = []
    with_backend(monkeypatch, lambda graph, _: graphs.append(graph) or graph)
    plain = run(**SUPERVISED)
    assert not graphs
    compiled = run(engine=COMPILED, output=tmp_path, **SUPERVISED)
    assert graphs
    assert compiled.summary["student_sha256"] == plain.summary["student_sha256"]
    assert list(compiled.student.state_dict()) == list(plain.student.state_dict())


def test_batches_of_any_size_and_further_clients_are_not_compiled_again(opened, monkeypatch):
    graphs = []
    with_backend(monkeypatch, lambda graph, _: graphs.append(graph) or graph)
    node = Node(opened(engine=COMPILED, training={"batch_size": 4}, **SUPERVISED))
    compiled = len(graphs)
    assert compiled <= 4  # train and eval, each for few and for many images
    arrays = node.initial_arrays()
    # 11, 9 and 6 images: batches of 4, 3, 5 and 2, predictions of other sizes; none is of one.
    for client in range(3):
        node.train(client, arrays, {}, 1)
    assert len(graphs) == compiled


def test_compiling_leaves_the_student_as_it_was(monkeypatch):
    with_backend(monkeypatch, "eager")
    student = small().eval()
    before = states.sha256(student.state_dict())
    compile_student(student, torch.rand(1, 3, 8, 8))
    assert states.sha256(student.state_dict()) == before
    assert not any("_orig_mod" in name for name in student.state_dict())
    assert all(parameter.grad is None for parameter in student.parameters())
    assert not student.training
    assert copy.deepcopy(student).backbone._compiled_call_impl is None


def test_a_failing_compilation_says_so_in_one_line(opened, monkeypatch):
    def fails(graph, inputs):
        raise RuntimeError("no such instruction\nand a long story")

    with_backend(monkeypatch, fails)
    with pytest.raises(ConfigError) as raised:
        Node(opened(engine=COMPILED, **SUPERVISED))
    text = str(raised.value)
    assert text.startswith("engine.compile is true, but torch cannot compile the student: ")
    assert "no such instruction" in text
    assert text.endswith(
        "install what is missing (on a CPU a C++ compiler), or set engine.compile=false"
    )
    assert "\n" not in text


@pytest.mark.slow
def test_a_missing_compiler_is_named(monkeypatch, tmp_path):
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with (
        inductor.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}),
        pytest.raises(ConfigError, match=r"C\+\+ compiler.*set engine.compile=false"),
    ):
        compile_student(small(), torch.rand(1, 3, 9, 9))


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs g++")
def test_torchs_own_compiler_gives_nearly_the_same_numbers_for_all_sizes(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    plain, compiled = small(), small()
    compile_student(compiled, torch.rand(1, 3, 8, 8))
    counters.clear()
    for size in (4, 7, 3):
        pixels = torch.rand(size, 3, 8, 8)
        first, second = (student.train()(pixels).logits for student in (plain, compiled))
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
        for logits in (first, second):
            logits.square().sum().backward()
    for (name, own), (_, other) in zip(
        plain.named_parameters(), compiled.named_parameters(), strict=True
    ):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert counters["stats"]["unique_graphs"] == 0
    assert torch.equal(compiled.eval()(pixels).logits, compiled.eval()(pixels).logits)
