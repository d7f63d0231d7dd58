        // This thread's part of the product. The chunks that are read again come in turn from the first to the last and from the
        // last to the first, so that a cache has half of them.
        //@ for $line in 0..LINES
        //@ for $row in 0..ROWS
        var sum$line_$row = 0.0f;
        //@ end
        //@ end
        //@ for $chunk in 0..KEPT
        //@ for $group in 0..GROUPS
        //@ for $pair in 0..PAIRS_OF_PIECE
        //@ for $row in 0..ROWS
        let x$chunk_$group_$pair_$row = vec2f(
            x_now[x_first + $rowu * CHUNKS + $chunku][($groupu * PAIRS_OF_PIECE + $pairu) * 2u],
            x_now[x_first + $rowu * CHUNKS + $chunku][($groupu * PAIRS_OF_PIECE + $pairu) * 2u + 1u]);
        //@ end
        //@ for $line in 0..LINES
        let w$chunk_$group_$pair_$line_now = kept_$pair(w$chunk_$group_$line);
        //@ for $row in 0..ROWS
        sum$line_$row += w$chunk_$group_$pair_$line_now.x * x$chunk_$group_$pair_$row.x;
        sum$line_$row += w$chunk_$group_$pair_$line_now.y * x$chunk_$group_$pair_$row.y;
        //@ end
        //@ end
        //@ end
        //@ end
        //@ end
        //@ for $stream in 0..STREAMS
        for (var i = 0u; i < STREAMED; i++) {
            let chunk = KEPT + select(i, STREAMED - 1u - i, backwards);
            //@ for $group in 0..GROUPS
            //@ for $line in 0..LINES
            let v$group_$line = next$group_$line;
            //@ end
            //@ end
            if i + 1u < STREAMED {
                let following = select(chunk + 1u, chunk - 1u, backwards);
                //@ for $group in 0..GROUPS
                //@ for $line in 0..LINES
                next$group_$line = piece_at(first_piece, following, $groupu, $lineu);
                //@ end
                //@ end
            }
            //@ for $group in 0..GROUPS
            //@ for $pair in 0..PAIRS_OF_PIECE
            //@ for $row in 0..ROWS
            let x$group_$pair_$row = vec2f(
                x_now[x_first + $rowu * CHUNKS + chunk][($groupu * PAIRS_OF_PIECE + $pairu) * 2u],
                x_now[x_first + $rowu * CHUNKS + chunk][($groupu * PAIRS_OF_PIECE + $pairu) * 2u + 1u]);
            //@ end
            //@ for $line in 0..LINES
            let v$group_$pair_$line_now = pair_$pair(v$group_$line);
            //@ for $row in 0..ROWS
            sum$line_$row += v$group_$pair_$line_now.x * x$group_$pair_$row.x;
            sum$line_$row += v$group_$pair_$line_now.y * x$group_$pair_$row.y;
            //@ end
            //@ end
            //@ end
            //@ end
        }
        //@ end
