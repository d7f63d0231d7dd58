    // The weights that stay in registers.
    let first_piece = of_pass + head * PIECES_OF_HEAD + min(thread, MULTIPLIERS - 1u);
    //@ for $chunk in 0..KEPT
    //@ for $group in 0..GROUPS
    //@ for $line in 0..LINES
    let w$chunk_$group_$line = kept(piece_at(first_piece, $chunku, $groupu, $lineu));
    //@ end
    //@ end
    //@ end
