import torch
from torch import nn

from fastmine.health import Monitor
from fastmine.losses import TripletLoss

torch.manual_seed(0)
model, criterion = nn.Linear(8, 4), TripletLoss()
optimizer = torch.optim.Adam(model.parameters())
monitor = Monitor(model, criterion, optimizer, speak=False)
for _ in range(50):
    labels = torch.randperm(100)[:16]  # 16 samples of 16 classes: nobody has a partner
    loss = criterion(model(torch.randn(16, 8)), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    monitor.step(loss)
print(monitor.report())
