"""Several runs over one store, in one process, where every step that could go wrong is a choice.

The idea, in the order of the files:

`clockwork`   Threads take turns: one at a time goes on, until it would wait or comes to a *point*, where another may
              be chosen. The locks, threads, queues and clock that the library finds in `threading`, `queue` and `time`
              are the clockwork's, so that who waits for what is known: when nobody can go on, the clock moves to the
              next one that waits for it, and when nobody waits for the clock, that is a hang. Nothing sleeps.
              Between two points a process goes on as long as one of its threads can: nobody else sees what it does.
`choices`     Who goes on, and what fails, is asked of a list of numbers. 0 stands for "nothing special". Beyond its end
              the list is made longer with 0 (to enumerate: every other number is tried later) or at random. So the list
              *is* the schedule, and the same list makes the same schedule.
`world`       A fake store that compares and swaps, and a fake API under the real HTTP store. Each call or request is a
              point that may succeed, fail, lose its answer, land late, answer with an old list, stop the run for some
              time, kill it, or raise in its main thread. They log what was truly written.
`jobs`        What a run does: a few operations on a real `Checkpointer`, and what it was told: acknowledged or not.
`verdict`     What must be true afterwards.
`search`      All schedules of a plan; random plans; and the shortest form of one that went wrong.
`parts`       A search in parts, for several processes.

A `Plan` (which store, which runs with which options and operations) and its choices print as Python, and
`search.replay` takes them: that is how a failure is repeated.
"""
