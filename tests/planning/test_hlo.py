"""Reading compiled programs: loops, mesh axes, slices of arrays, near memory."""

import pytest

from medclip_jax.runtime.hlo import SLICES, Collective, Program

MESH = {"data": 2, "fsdp": 2, "tensor": 1}

LOOPED = """\
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %add.1 = f32[]{:T(128)} add(%x, %y)
}

%body (param: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %param = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%param), index=0
  %value = f32[8,4]{1,0:T(8,128)} get-tuple-element(%param), index=1
  %start = (f32[8,4]{1,0}, f32[8,4]{1,0}, u32[], u32[]) collective-permute-start(%value), channel_id=1, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %done = f32[8,4]{1,0} collective-permute-done(%start)
  %sum = f32[8,4]{1,0} all-reduce(%done), channel_id=2, replica_groups={{0,2},{1,3}}, use_global_device_ids=true, to_apply=%add
  ROOT %tuple = (s32[], f32[8,4]{1,0}) tuple(%i, %sum)
}

%condition (param.1: (s32[], f32[8,4])) -> pred[] {
  %param.1 = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%param.1), index=0
  %bound = s32[]{:T(128)} constant(5)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %bound), direction=LT
}

ENTRY %main (p0: f32[8,4]) -> f32[8,4] {
  %p0 = f32[8,4]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %init = (s32[], f32[8,4]{1,0}) tuple(%zero, %p0)
  %loop = (s32[], f32[8,4]{1,0}) while(%init), condition=%condition, body=%body
  %out = f32[8,4]{1,0} get-tuple-element(%loop), index=1
  %gathered = f32[16,4]{1,0} all-gather(%out), replica_groups=[2,2]<=[4], dimensions={0}
  ROOT %end = f32[8,4]{1,0} negate(%out), backend_config={"estimated_cycles":"70"}
}
"""


def test_what_stands_in_a_loop_counts_as_often_as_it_runs():
    found = Program(LOOPED).collectives(MESH)
    assert set(found) == {
        Collective("all-reduce", "data", 2, 8 * 4 * 4, 5),
        Collective("collective-permute", "data+fsdp", 2, 8 * 4 * 4, 5),
        Collective("all-gather", "fsdp", 2, 16 * 4 * 4, 1),
    }


def test_xlas_own_count_of_a_loop_is_taken():
    noted = 'backend_config={"known_trip_count":{"n":"3"}}'
    text = LOOPED.replace("body=%body", f"body=%body, {noted}")
    assert {of.times for of in Program(text).collectives(MESH)} == {3, 1}


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("{{0,1},{2,3}}", "fsdp"),
        ("{{0,2},{1,3}}", "data"),
        ("{{0,1,2,3}}", "data+fsdp"),
        ("[2,2]<=[4]", "fsdp"),
        ("[2,2]<=[2,2]T(1,0)", "data"),
        ("[1,4]<=[4]", "data+fsdp"),
        ("mesh['a'=2,'b'=2] {'b'}", "fsdp"),
        ("mesh['a'=2,'b'=2] {'a'}", "data"),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", "fsdp"),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", "data"),
        ("mesh['a'=2,'b'=2], device_ids=([4]) {'b'}", "fsdp"),
        ("{{0},{1},{2},{3}}", None),
    ],
)
def test_axes_follow_from_the_groups(groups, axes):
    text = LOOPED.replace("replica_groups={{0,2},{1,3}}", f"replica_groups={groups}")
    found = [of for of in Program(text).collectives(MESH) if of.kind == "all-reduce"]
    assert [of.axes for of in found] == ([axes] if axes else [])


def test_one_that_stands_in_two_fusions_is_sent_once():
    """A collective that runs beside computing keeps its channel in each part."""
    line = next(of for of in LOOPED.splitlines() if "%sum = " in of)
    again = line.replace("%sum", "%sum.2")
    found = Program(LOOPED.replace(line, f"{line}\n{again}")).collectives(MESH)
    assert [of.times for of in found if of.kind == "all-reduce"] == [5]


def test_what_one_device_sends():
    assert Collective("all-reduce", "data", 4, 100, 1).sent == 150
    assert Collective("all-gather", "data", 4, 100, 2).sent == 150
    assert Collective("reduce-scatter", "data", 4, 25, 1).sent == 75
    assert Collective("collective-permute", "data", 2, 100, 3).sent == 300


def test_transfers_between_slices():
    send = (
        "  %send = (f32[128]{0}, u32[], token[]) send(%out, %zero), channel_id=9, "
        "is_host_transfer=true, frontend_attributes={"
        '_xla_megascale_transfer_type="ALL_REDUCE"}\n'
    )
    text = LOOPED.replace("  ROOT %end", send + "  ROOT %end")
    found = Program(text).collectives(MESH, slices=2)
    assert Collective("all-reduce", SLICES, 2, 512, 1) in found
    assert len(found) == 4


def test_cycles():
    assert Program(LOOPED).cycles() == 70


SLICED = """\
%read (a: f32[64,8], i: s32[]) -> f32[1,8] {
  %a = f32[64,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %part = f32[1,8]{1,0} dynamic-slice(%a, %i, %zero), dynamic_slice_sizes={1,8}
  ROOT %twice = f32[1,8]{1,0} add(%part, %part)
}

%write (b: f32[64,8], c: f32[1,8], j: s32[]) -> f32[64,8] {
  %b = f32[64,8]{1,0} parameter(0)
  %c = f32[1,8]{1,0} parameter(1)
  %j = s32[] parameter(2)
  %none = s32[] constant(0)
  ROOT %put = f32[64,8]{1,0} dynamic-update-slice(%b, %c, %j, %none)
}

ENTRY %main (p0: f32[64,8], p1: s32[]) -> f32[64,8] {
  %p0 = f32[64,8]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %near = f32[64,8]{1,0:T(8,128)S(1)} copy(%p0)
  %got = f32[1,8]{1,0} fusion(%p0, %p1), kind=kLoop, calls=%read
  ROOT %out = f32[64,8]{1,0} fusion(%p0, %got, %p1), kind=kLoop, calls=%write
}
"""


def test_memory_counts_slices_and_leaves_out_what_is_near():
    whole, row, index = 64 * 8 * 4, 8 * 4, 4
    copy = whole  # read from the main memory, written near the cores
    read = row + index + row
    write = row + index + row
    assert Program(SLICED).memory_bytes() == copy + read + write


def test_a_program_of_this_machine_is_read_too():
    import jax
    import jax.numpy as jnp

    def step(x):
        return jax.lax.fori_loop(0, 7, lambda _, y: jnp.sin(y @ y), x)

    text = jax.jit(step).lower(jnp.ones((64, 64))).compile().as_text()
    # Each round reads the matrix for the product and writes one, at the least.
    assert Program(text).memory_bytes() >= 7 * 2 * 64 * 64 * 4
    assert Program(text).collectives({"data": 1}) == []
