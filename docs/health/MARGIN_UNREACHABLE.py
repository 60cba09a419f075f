import torch
from torch import nn
from torch.nn import functional as F

from fastmine.health import Monitor
from fastmine.losses import TripletLoss

torch.manual_seed(0)
model, criterion = nn.Linear(8, 4), TripletLoss(margin=2.5)
optimizer = torch.optim.Adam(model.parameters())
monitor = Monitor(model, criterion, optimizer, speak=False)
for _ in range(50):
    labels = torch.arange(16) // 4
    loss = criterion(F.normalize(model(torch.randn(16, 8))), labels)  # unit vectors are at most 2 apart
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    monitor.step(loss)
print(monitor.report())
