        // This thread's part of the product.
        //@ for $line in 0..LINES
        //@ for $row in 0..ROWS
        var sum$line_$row = 0.0f;
        //@ end
        //@ end
        if thread < MULTIPLIERS {
            let x_first = (operand * SPLIT + part_of(thread)) * ROWS * CHUNKS;
            //@ for $chunk in 0..RESIDENT
            //@ for $group in 0..GROUPS
            //@ for $pair in 0..PAIRS_PER_PIECE
            {
                let k = ($groupu * PAIRS_PER_PIECE + $pairu) * 2u;
                //@ for $row in 0..ROWS
                let x$row = vec2f(x_now[x_first + $rowu * CHUNKS + $chunku][k],
                    x_now[x_first + $rowu * CHUNKS + $chunku][k + 1u]);
                //@ end
                //@ for $line in 0..LINES
                let w$line = resident_$pair(w$chunk_$group_$line);
                //@ for $row in 0..ROWS
                sum$line_$row += w$line.x * x$row.x;
                sum$line_$row += w$line.y * x$row.y;
                //@ end
                //@ end
            }
            //@ end
            //@ end
            //@ end
            // The order of the chunks alternates from step to step, so that the cache still has
            // half of them.
            //@ for $i in 0..STREAMED
            {
                let chunk = RESIDENT + select($iu, STREAMED - 1u - $iu, backwards);
                //@ for $group in 0..GROUPS
                //@ for $line in 0..LINES
                let piece$group_$line = piece_at(first_piece, chunk, $groupu, $lineu);
                //@ end
                //@ end
                //@ for $group in 0..GROUPS
                //@ for $pair in 0..PAIRS_PER_PIECE
                {
                    let k = ($groupu * PAIRS_PER_PIECE + $pairu) * 2u;
                    //@ for $row in 0..ROWS
                    let x$row = vec2f(x_now[x_first + $rowu * CHUNKS + chunk][k],
                        x_now[x_first + $rowu * CHUNKS + chunk][k + 1u]);
                    //@ end
                    //@ for $line in 0..LINES
                    let w$line = pair_$pair(piece$group_$line);
                    //@ for $row in 0..ROWS
                    sum$line_$row += w$line.x * x$row.x;
                    sum$line_$row += w$line.y * x$row.y;
                    //@ end
                    //@ end
                }
                //@ end
                //@ end
            }
            //@ end
            //@ if SHARED
            //@ for $row in 0..ROWS
            //@ for $line in 0..LINES
            set_part(thread, $lineu, $rowu, sum$line_$row);
            //@ end
            //@ end
            //@ end
        }
