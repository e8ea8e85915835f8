"""Trees made anew: equal to what PyTorch makes of them, and with what stands under two names as one thing."""

from collections import OrderedDict, namedtuple

import pytest
import torch
from torch.utils import _pytree as pytree

from lossmap import trees
from lossmap.trees import NotJoined, clones, first_places, has_views, rebuilt

Pair = namedtuple("Pair", "a b")
A, B = torch.arange(6.0).view(2, 3), torch.arange(3.0)
TREES = [A, (A, [B, {"n": 3, "none": None}]), Pair(A, OrderedDict(z=B, y=())), [], {"a": [A, A], "b": "text"}]


@pytest.mark.parametrize("tree", TREES)
def test_a_tree_is_rebuilt_as_pytorch_maps_it(tree):
    def twice(leaf):
        return 2 * leaf if isinstance(leaf, torch.Tensor) else leaf

    made, expected = rebuilt(twice, tree), pytree.tree_map(twice, tree)
    assert pytree.tree_structure(made) == pytree.tree_structure(expected)
    assert repr(made) == repr(expected)
    joined = rebuilt(lambda *parts: torch.cat(parts) if isinstance(parts[0], torch.Tensor) else parts[0], tree, tree)
    for leaf, other in zip(pytree.tree_leaves(joined), pytree.tree_leaves(tree), strict=True):
        assert not isinstance(leaf, torch.Tensor) or torch.equal(leaf, torch.cat([other, other]))


def test_what_stands_under_two_names_is_one_thing_in_the_rebuilt_tree():
    inner = {"x": A}
    made = rebuilt(lambda t: t.clone(), [inner, (inner, A), Pair(inner, B)])
    assert made[0] is made[1][0] is made[2].a and made[0]["x"] is made[1][1] and made[0] is not inner
    assert made[0]["x"] is not A and torch.equal(made[0]["x"], A)


def test_trees_that_share_otherwise_are_not_joined():
    shared, apart = [A, A], [A, A.clone()]
    with pytest.raises(NotJoined, match="stands under two names"):
        rebuilt(lambda *parts: torch.cat(parts), shared, apart)
    with pytest.raises(NotJoined, match="stands under two names"):
        rebuilt(lambda *parts: torch.cat(parts), apart, shared)
    assert first_places(shared) == first_places([B, B]) != first_places(apart)


def test_clones_of_views_are_views_of_one_copy():
    whole = torch.arange(20.0).view(4, 5)
    views = [whole[:, 1:3], whole[2], whole[:, ::2], whole[1:2].expand(3, 5), B]
    copies = clones(views)
    made = [copies[id(t)] for t in views]
    assert all(torch.equal(copy, t) and copy.stride() == t.stride() for copy, t in zip(made, views, strict=True))
    for t in (*views[:3], *made[:3]):
        t[0] = -1.0  # the same writes to either reach the same numbers
    assert all(torch.equal(copy, t) for copy, t in zip(made, views, strict=True))
    assert made[0].untyped_storage().data_ptr() != whole.untyped_storage().data_ptr()


def test_views_are_those_that_share_numbers():
    whole = torch.arange(20.0).view(4, 5)
    assert has_views((whole[:, :3], whole[:, 2:])) and has_views([whole, {"row": whole[1]}])
    assert not has_views((whole[:, :3], whole[:, 3:])) and not has_views((whole, whole, whole.clone(), B))
    assert not has_views((whole.to_sparse(), whole[:0], whole))


def test_only_the_stretches_that_views_take_are_copied_and_compared(monkeypatch):
    memory = torch.zeros(1_000_000)  # as of a table of all samples, of which a batch has some rows
    near, far = memory[:8].view(2, 4), memory[-6:]
    copies = clones([near, far, memory[-6:-3]])
    assert [copies[id(t)].untyped_storage().nbytes() for t in (near, far)] == [8 * 4, 6 * 4]
    copies[id(far)][0] = 1.0
    asked = []
    monkeypatch.setattr(trees, "arange", lambda n: asked.append(n) or torch.arange(n))
    assert has_views((near, far, memory[-3:])) and not has_views((near, far, memory[8:12]))
    assert max(asked) <= 8


def test_clones_are_made_within_vmap_too():
    whole = torch.arange(20.0).view(4, 5)
    doubled = torch.func.vmap(lambda t: 2 * clones([t, t])[id(t)])(whole)
    assert torch.equal(doubled, 2 * whole)
