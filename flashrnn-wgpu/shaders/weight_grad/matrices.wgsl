// Computes d_r in parts, as tiles.wgsl does, with 16 x 16 cooperative matrices that multiply f16
// and add in f32. D is a multiple of WIDTH.
//
// partial [parts, Gr, N, D_out, D_in]: sums of dg h. A workgroup computes a tile of WIDTH x WIDTH
// (out, in) of one gate, head and part; a subgroup of 32 computes OUTS x INS matrices of it. In a
// round, 8 invocations move WIDTH units of dg and of h of a token to workgroup memory. The units
// are loaded a round ahead.

const ROUND = 32u;
const OUTS = WIDTH / 64u;
const INS = WIDTH / 32u;
// Pairs of units that an invocation loads.
const PAIRS = WIDTH / 16u;
const STRIDE = WIDTH + 8u;

var<workgroup> tile_dg: array<f16, ROUND * STRIDE>;
var<workgroup> tile_h: array<f16, ROUND * STRIDE>;

@compute @workgroup_size(256)
fn weight_grad(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) thread: u32,
                   @builtin(subgroup_id) subgroup: u32) {
    let tiles = params.head_dim / WIDTH;
    // Surplus workgroups repeat the last one's work, because no invocation may return early.
    let group = min(group_index(id), params.parts * RECURRENT * params.heads * tiles * tiles - 1u);
    let in0 = group % tiles * WIDTH;
    let out0 = group / tiles % tiles * WIDTH;
    let matrix = group / tiles / tiles;  // (part * Gr + gate) * N + head
    let head = matrix % params.heads;
    let gate = matrix / params.heads % RECURRENT;
    let first = matrix / params.heads / RECURRENT * params.part_tokens;
    let end = min(first + params.part_tokens, tokens());
    let line = thread / 8u;
    let of_line = thread % 8u * 2u;
    let place = head * params.head_dim + of_line;

    //@ for $o in 0..OUTS
    //@ for $i in 0..INS
    var sum$o_$i: coop_mat16x16<f32, C>;
    //@ end
    //@ end
    //@ for $pair in 0..PAIRS
    var dg$pair = vec2u();
    var h$pair = vec2u();
    //@ end
    // The first round only loads.
    for (var done = 0u; done < params.part_tokens + ROUND; done += ROUND) {
        workgroupBarrier();
        //@ for $pair in 0..PAIRS
        let two_dg$pair = widen2(dg$pair);
        let two_h$pair = widen2(h$pair);
        tile_dg[line * STRIDE + of_line + $pairu * 16u] = f16(two_dg$pair.x);
        tile_dg[line * STRIDE + of_line + $pairu * 16u + 1u] = f16(two_dg$pair.y);
        tile_h[line * STRIDE + of_line + $pairu * 16u] = f16(two_h$pair.x);
        tile_h[line * STRIDE + of_line + $pairu * 16u + 1u] = f16(two_h$pair.y);
        dg$pair = vec2u();
        h$pair = vec2u();
        //@ end
        workgroupBarrier();
        let token = first + done + line;
        if token < end {
            let previous = previous_of(token);
            //@ for $pair in 0..PAIRS
            dg$pair = dg_bits(token, gate, place + out0 + $pairu * 16u);
            h$pair = h_bits(previous, place + in0 + $pairu * 16u);
            //@ end
        }
        //@ for $k in 0..2
        //@ for $o in 0..OUTS
        let a$k_$o = coopLoad<coop_mat16x16<f16, A>>(
            &tile_dg[$ku * 16u * STRIDE + (subgroup % 4u * OUTS + $ou) * 16u], STRIDE);
        //@ end
        //@ for $i in 0..INS
        let b$k_$i = coopLoadT<coop_mat16x16<f16, B>>(
            &tile_h[$ku * 16u * STRIDE + (subgroup / 4u * INS + $iu) * 16u], STRIDE);
        //@ for $o in 0..OUTS
        sum$o_$i = coopMultiplyAdd(a$k_$o, b$k_$i, sum$o_$i);
        //@ end
        //@ end
        //@ end
    }
    // The index has a name because naga accepts only short expressions in `coopStoreT`.
    let line_of_r = params.head_dim;
    let corner = (matrix * line_of_r + out0 + subgroup % 4u * OUTS * 16u) * line_of_r
        + in0 + subgroup / 4u * INS * 16u;
    //@ for $o in 0..OUTS
    //@ for $i in 0..INS
    let at$o_$i = corner + $ou * 16u * line_of_r + $iu * 16u;
    coopStoreT(sum$o_$i, &partial[at$o_$i], line_of_r);
    //@ end
    //@ end
}
