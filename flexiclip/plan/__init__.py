"""What a recipe costs on a cluster, before it is rented: memory, FLOPs, traffic, images/s and hours (`flexiclip plan`).

    towers.py    the model on the meta device: parameters, shapes, what trains
    compute.py   FLOPs of the loss; those of the towers: models/training_flops.py
    memory.py    activations and the peak of a step; states.py: what each ZeRO stage keeps
    traffic.py   collectives of a step
    hardware.py  the devices, from their data sheets
    plan.py      all of it for one recipe, as one `Plan` (result.py); table.py prints it

Every figure follows from a formula that stands beside the code it describes; tests/plan checks FLOPs, memory and traffic against
what torch counts on real models and real ranks.
"""
