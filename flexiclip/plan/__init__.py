"""What a recipe costs on a cluster, before it is rented: memory, FLOPs, traffic, images/s and hours (`flexiclip plan`).

    towers.py    the model on the meta device: parameters, shapes, what trains
    compute.py   FLOPs of the loss; those of the towers: models/training_flops.py
    memory.py    activations and the peak of a step; states.py: what each ZeRO stage keeps
    traffic.py   collectives of a step
    hardware.py  the devices, from their data sheets
    plan.py      all of it for one recipe, as one `Plan` (result.py); table.py prints it

Every figure follows from a formula that is written down beside the code that computes it. tests/plan compares the FLOPs of steps
and the peak memory of one rank of plain torch with what torch counts on real models, and the traffic, the parameters and the
optimiser's states of every engine with those of real ranks over gloo. ZeRO's gradients and buffers follow DeepSpeed's source.
"""
