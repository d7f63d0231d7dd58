    // The weights in registers, and the first of those that are read again.
    //@ for $group in 0..GROUPS
    //@ for $line in 0..LINES
    //@ for $chunk in 0..KEPT
    let w$chunk_$group_$line = kept(piece_at(first_piece, $chunku, $groupu, $lineu));
    //@ end
    //@ for $stream in 0..STREAMS
    var next$group_$line = piece_at(first_piece, select(KEPT, CHUNKS - 1u, backwards), $groupu, $lineu);
    //@ end
    //@ end
    //@ end
