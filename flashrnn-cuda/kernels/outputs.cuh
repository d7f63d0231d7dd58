// What a forward pass writes at every step.
#pragma once
#include "call.cuh"

// Writes the outputs of a unit and token. `place` is the unit's index in [N, D]. Beyond the row's
// length (`active` is false), `next` is zero, and zeros are written for the gates.
__device__ __forceinline__ void store_outputs(const ForwardCall& call, const Sizes& sizes,
                                              Offset token, Offset place, bool active,
                                              const float (&next)[Cell::STATES],
                                              const float (&gates)[Cell::GATES]) {
    const Offset at = token * sizes.units() + place, tensor = sizes.tokens() * sizes.units();
    if (call.h) saturate(next[0], call.h[at]);
    if (call.states) {
#pragma unroll
        for (int s = 0; s < Cell::STATES; ++s) saturate(next[s], call.states[s * tensor + at]);
    }
    if (call.wide_states) {
#pragma unroll
        for (int s = 0; s < Cell::STATES; ++s)
            if (kept_wide(Cell::WIDE, s))
                call.wide_states[rank(Cell::WIDE, s) * tensor + at] = next[s];
    }
    if (call.save_gates) {
#pragma unroll
        for (int gate = 0; gate < Cell::GATES; ++gate) {
            const float value = active ? gates[gate] : 0.0f;
            saturate(value, call.gates.at(sizes, token, gate, place));
            if (kept_wide(Cell::WIDE_GATES, gate))
                call.wide_gates[rank(Cell::WIDE_GATES, gate) * tensor + at] = value;
        }
    }
}
