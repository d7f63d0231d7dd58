    // The weights that stay in registers.
    let first_piece = pass_pieces + head * PIECES_PER_HEAD + min(thread, MULTIPLIERS - 1u);
    //@ for $chunk in 0..RESIDENT
    //@ for $group in 0..GROUPS
    //@ for $line in 0..LINES
    let w$chunk_$group_$line = resident(piece_at(first_piece, $chunku, $groupu, $lineu));
    //@ end
    //@ end
    //@ end
