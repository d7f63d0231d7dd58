// Computes the product of a per-step kernel: 8 units of a head by 16 rows of the batch, on 256
// threads.
//
// Numbers along k come in pieces of 4. A thread multiplies LINES lines of weights (the gates of a
// unit in the forward pass, 4 units in the backward pass) by 4 rows of the batch, for every
// PARTS-th piece along k. PARTS threads thus share a sum. A round loads ROUND pieces of each of the
// 16 rows into workgroup memory and PIECES pieces of each line into a thread's registers. Both are
// loaded a round ahead.
//
// The kernel defines the factors: `line_piece(place, line, piece)` and `row_piece(place, row,
// piece)`.

const ROUND = PARTS * PIECES;
// Two pieces of padding per row put the four rows that are read at once in different banks.
const ROW = ROUND + 2u;
// Sums that are added at a time: AT_ONCE lines of every thread, by 4 rows. Workgroup memory holds
// MEMORY_PARTS parts of each, which ADDERS threads add.
const SUMS = 256u / PARTS * AT_ONCE;
const MEMORY_PARTS = PARTS / SUBGROUP_PARTS;

var<workgroup> memory: array<vec4f, max(16u * ROW, SUMS * MEMORY_PARTS)>;

// The role of a thread.
struct Place {
    head: u32,
    unit0: u32,  // the workgroup's first unit
    row0: u32,   // the workgroup's first row
    // In the product.
    lines: u32,  // index of its group of lines in the workgroup
    part: u32,   // its part of k
    rows: u32,   // its first row; the others are 4, 8 and 12 rows further
    // In the cell, for the first 64 threads: two units of a row.
    row: u32,
    unit: u32,   // the first unit
    length: u32,
    exists: bool,
    both: bool,  // whether the second unit exists
}

fn place_of(id: vec3u, thread: u32) -> Place {
    let unit_groups = (params.head_dim + 7u) / 8u;
    let group = group_index(id);
    var place: Place;
    place.head = group / unit_groups % params.heads;
    place.unit0 = group % unit_groups * 8u;
    place.row0 = group / unit_groups / params.heads * 16u;
    place.lines = thread / 4u / PARTS;
    place.part = thread / 4u % PARTS;
    place.rows = thread % 4u;
    place.row = place.row0 + thread / 4u;
    place.unit = place.unit0 + thread % 4u * 2u;
    place.exists = thread < 64u && place.row < params.batch && place.unit < params.head_dim;
    place.both = place.exists && place.unit + 1u < params.head_dim;
    if place.exists { place.length = length_of(place.row); }
    return place;
}

// A piece of a line of `weights`, or zeros beyond the line.
fn piece_of(line: u32, exists: bool, piece: u32, count: u32) -> vec4f {
    if !exists || piece >= count { return vec4f(); }
    return bitcast<vec4f>(weights[line + piece]);
}

// A piece of a line of D numbers in `work`.
fn piece_of_work(line: u32, piece: u32) -> vec4f {
    let k = piece * 4u;
    var x = vec4f();
    //@ for $j in 0..4
    if k + $ju < params.head_dim { x[$j] = work_f32(line + k + $ju); }
    //@ end
    return x;
}

// Returns this thread's partial sums: the products of its lines with its 4 rows over its part of k.
fn product(place: Place, thread: u32) -> array<vec4f, PADDED_LINES> {
    //@ for $line in 0..LINES
    var sum$line = vec4f();
    //@ for $i in 0..PIECES
    var next_w$line_$i = line_piece(place, $lineu, place.part + $iu * PARTS);
    //@ end
    //@ end
    //@ for $load in 0..LOADS
    var next_x$load = row_piece(place, (thread + $loadu * 256u) / ROUND,
        (thread + $loadu * 256u) % ROUND);
    //@ end
    for (var round = 0u; round < ROUNDS; round++) {
        workgroupBarrier();
        //@ for $load in 0..LOADS
        memory[(thread + $loadu * 256u) / ROUND * ROW + (thread + $loadu * 256u) % ROUND] =
            next_x$load;
        //@ end
        //@ for $line in 0..LINES
        //@ for $i in 0..PIECES
        let w$line_$i = next_w$line_$i;
        //@ end
        //@ end
        workgroupBarrier();
        if round + 1u < ROUNDS {
            let first = (round + 1u) * ROUND;
            //@ for $line in 0..LINES
            //@ for $i in 0..PIECES
            next_w$line_$i = line_piece(place, $lineu, first + place.part + $iu * PARTS);
            //@ end
            //@ end
            //@ for $load in 0..LOADS
            next_x$load = row_piece(place, (thread + $loadu * 256u) / ROUND,
                first + (thread + $loadu * 256u) % ROUND);
            //@ end
        }
        //@ for $i in 0..PIECES
        //@ for $row in 0..4
        let x$row_$i = memory[(place.rows + $rowu * 4u) * ROW + place.part + $iu * PARTS];
        //@ end
        //@ for $line in 0..LINES
        sum$line += vec4f(dot(w$line_$i, x0_$i), dot(w$line_$i, x1_$i), dot(w$line_$i, x2_$i),
            dot(w$line_$i, x3_$i));
        //@ end
        //@ end
    }
    var sums: array<vec4f, PADDED_LINES>;
    //@ for $line in 0..LINES
    sums[$line] = sum$line;
    //@ end
    return sums;
}

// The index in workgroup memory of a thread's sum of a line.
fn sum_at(place: Place, line: u32) -> u32 {
    return place.part / SUBGROUP_PARTS * SUMS + (place.lines * AT_ONCE + line) * 4u + place.rows;
}

// Stores the sums of lines `first` to `first + AT_ONCE - 1` of every thread in workgroup memory and
// adds their parts until ADDERS are left, which `added` adds.
fn add_up(place: Place, thread: u32, sums: array<vec4f, PADDED_LINES>, first: u32) {
    workgroupBarrier();
    store_sums(place, sums, first);
    workgroupBarrier();
    if MEMORY_PARTS == ADDERS { return; }
    if thread < SUMS * ADDERS {
        let part = thread / SUMS * (MEMORY_PARTS / ADDERS);
        var sum = memory[part * SUMS + thread % SUMS];
        for (var i = 1u; i < MEMORY_PARTS / ADDERS; i++) {
            sum += memory[(part + i) * SUMS + thread % SUMS];
        }
        memory[part * SUMS + thread % SUMS] = sum;
    }
    workgroupBarrier();
}

// The complete sum of line `first` + i of a group of lines, for this thread's row.
fn added(place: Place, lines: u32, i: u32) -> f32 {
    let row = place.row - place.row0;
    let at = (lines * AT_ONCE + i) * 4u + row % 4u;
    var sum = 0.0f;
    for (var part = 0u; part < MEMORY_PARTS; part += MEMORY_PARTS / ADDERS) {
        sum += memory[part * SUMS + at][row / 4u];
    }
    return sum;
}
