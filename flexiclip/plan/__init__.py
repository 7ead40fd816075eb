"""`flexiclip plan`: what a recipe will cost on a cluster, in memory, FLOPs, traffic, images/s and hours.

    towers.py    the model on the meta device: parameters, shapes, what trains
    memory.py    the activations and the peak of a step; states.py has what each ZeRO stage keeps
    traffic.py   the collectives of a step
    hardware.py  the devices, from their data sheets
    plan.py      all of this for one recipe, as a `Plan` (result.py), which table.py prints

FLOPs come from flexiclip/models/flops.py.

Every figure comes from a formula that is written next to the code that computes it. tests/plan compares two of them with what
torch counts on real models: the FLOPs of steps, and the peak memory of one rank under plain torch. It compares the traffic, the
parameters and the optimizer's states of every engine with those of real ranks over gloo. ZeRO's gradients and buffers follow
DeepSpeed's source.
"""
