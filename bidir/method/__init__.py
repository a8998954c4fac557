"""The paper (BMP, IEEE TNNLS 2024), tensors in and out. Where its symbols are computed:

=====================  =====================================================================================
f1..f4                 ``encoders.make_encoder``: features at strides 4, 8, 16, 16
z, P_c                 ``network.ClassificationBranch``: class logits, CAM logits
P_s                    ``network.SegmentationBranch``; object-aware: f_k * ``network.object_map`` (C -> S)
a                      ``network.AffinityHead``: affinity between tokens
multi-scale CAM, P_s   ``maps.multi_scale_pass``, ``maps.seed_maps``
PAR                    ``par.PAR``: pixel-adaptive refinement
Y_c                    ``propagation.Propagator``: ``par``, ``afa`` (``random_walk``), ``bsp`` (S -> C), ``complement``
Y_s                    ``propagation.segmentation_pseudo_label``
L_cls                  ``losses.classification_loss``
L_c2s, L_s2c           ``losses.dense_loss``; ``losses.feedback_loss``: the paper's, and others
L_aff                  ``losses.affinity_loss``
L                      ``supervision.total_loss``; what is on when: ``supervision.active``
=====================  =====================================================================================
"""
