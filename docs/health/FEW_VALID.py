import torch
from torch import nn

from fastmine.health import Monitor
from fastmine.losses import TripletLoss

torch.manual_seed(0)
model, criterion = nn.Linear(8, 4), TripletLoss()
optimizer = torch.optim.Adam(model.parameters())
monitor = Monitor(model, criterion, optimizer, speak=False)
for _ in range(50):
    labels = torch.cat([torch.zeros(2), torch.arange(1, 15)]).long()  # one pair, fourteen singletons
    loss = criterion(model(torch.randn(16, 8)), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    monitor.step(loss)
print(monitor.report())
